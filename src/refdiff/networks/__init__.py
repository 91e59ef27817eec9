"""Torch networks of published models that no installed library builds; their layers are timm's."""
