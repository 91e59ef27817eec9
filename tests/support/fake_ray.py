"""A stand-in for Ray: items are computed in this process, and workers get lost on demand."""

from types import ModuleType, SimpleNamespace


class RayError(Exception):
    """What Ray raises when an actor or its node is lost."""


class FakeDataset:
    """Items that actors take in turns."""

    def __init__(self, ray, rows):
        self.ray, self.rows = ray, rows

    def map_batches(self, kind, *, compute, fn_constructor_args, **given):
        """Remember how many actors of what size were asked for."""
        self.ray.actors.append((compute, given["num_cpus"], given["num_gpus"]))
        self.actor = kind(*fn_constructor_args)
        return self

    def iter_rows(self):
        """Yield results in reverse, until the next loss."""
        for done, row in enumerate(reversed(self.rows)):
            if self.ray.losses and done == self.ray.losses[0]:
                self.ray.losses.pop(0)
                self.ray.resources[1:] = []
                raise RayError("The actor died.\nThe actor died because its node has died. Node Id: c606")
            outcome = self.actor({name: [value] for name, value in row.items()})
            yield {name: values[0] for name, values in outcome.items()}


def fake_ray(resources, losses=(), free=None):
    """Return the modules `ray` and `ray.data`.

    Args:
        resources: of each node.
        losses: after how many results of each attempt a worker is lost, and all nodes but the first.
        free: what other work leaves; None: everything.
    """
    ray, data = ModuleType("ray"), ModuleType("ray.data")
    ray.resources, ray.losses, ray.actors, ray.connected = list(resources), list(losses), [], []
    ray.data, ray.exceptions = data, SimpleNamespace(RayError=RayError)
    ray.nodes = lambda: [{"Alive": True, "Resources": each} for each in ray.resources]
    total = {kind: sum(each.get(kind, 0) for each in resources) for kind in ("CPU", "GPU")}
    ray.available_resources = lambda: total if free is None else free
    ray.is_initialized = lambda: False
    ray.init = lambda *, address, **given: ray.connected.append(address)
    ray.shutdown = lambda: ray.connected.append(None)
    data.DataContext = SimpleNamespace(get_current=lambda: SimpleNamespace())
    data.ActorPoolStrategy = lambda *, size: size
    data.from_items = lambda rows, *, override_num_blocks: FakeDataset(ray, rows)
    return ray, data
