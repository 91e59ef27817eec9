"""`fetch`: download a model's checkpoints into a folder, verified; offline, list the missing files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refdiff.contracts.inspection import MINIATURES
from refdiff.contracts.optional import require_export
from refdiff.contracts.progress import Progress, silent
from refdiff.errors import InputError, MissingDependencyError
from refdiff.models.hub.folder import RepoState, UnreachableError, default_root, inspect_folder, repo_folder
from refdiff.models.hub.names import HubName, parse_hub_name
from refdiff.models.presets import PRESETS, known_source
from refdiff.reports.page import Section
from refdiff.reports.table import Column, Table, size_text

if TYPE_CHECKING:
    from refdiff.models.hub.folder import FileRow

_PURPOSE = "fetching from the hub"


@dataclass(frozen=True, kw_only=True)
class FetchReport:
    """The files of a model, in the folder they are fetched to."""

    model: str
    folder: Path
    repos: tuple[RepoState, ...]

    @property
    def complete(self) -> bool:
        """True if the model can be exported from here."""
        return all(repo.complete for repo in self.repos)

    @property
    def downloads(self) -> bool:
        """True if something is missing that can be downloaded."""
        return any(repo.listing is not None and repo.lacking for repo in self.repos)

    @property
    def problem(self) -> str | None:
        """One line: why the model is incomplete, and what to do; None if nothing prevents the download."""
        blocked = [repo for repo in self.repos if repo.problem and not repo.complete]
        lines = dict.fromkeys(str(repo.problem) for repo in blocked)
        return "; ".join((*lines, *(repo.advice for repo in blocked))) or None

    @property
    def to_download_bytes(self) -> int:
        """Size of the missing files, as far as it is known."""
        return sum(row.size_bytes or 0 for repo in self.repos for row in repo.lacking)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            "model": self.model,
            "folder": str(self.folder),
            "complete": self.complete,
            "to_download_bytes": self.to_download_bytes,
            "problem": self.problem,
            "repos": [_repo_json(repo) for repo in self.repos],
        }


def fetch(
    model: str,
    to: Path | str | None = None,
    *,
    revision: str | None = None,
    diffusion_weights: str | None = None,
    offline: bool = False,
    dry_run: bool = False,
    progress: Progress = silent,
) -> FetchReport:
    """Download a model's checkpoints; files that are there and verified are not downloaded again.

    Args:
        model: a preset, "refdiff" for instance, or owner/name or owner/name/file on the hub.
        to: the folder to fill; None for the one that `export` looks into.
        revision: a branch, tag or commit of owner/name; None for what is there already, or the newest.
        diffusion_weights: "ema" or "non-ema", of a model with both; None: "non-ema" of a preset.
        offline: do not use the network; only list what is there and what is missing.
        dry_run: download nothing.
        progress: receives a line at each step.

    Returns:
        The files that are there now. With `offline`, or if the hub cannot be reached, some may be missing,
        and `problem` says which files belong where.

    Raises:
        InputError: no such model, revision or file, or the disk refuses.
        MissingDependencyError: the connection failed; the next call continues the download.
    """
    plan = plan_download(
        model,
        to,
        revision=revision,
        diffusion_weights=diffusion_weights,
        offline=offline,
        progress=progress,
    )
    return plan if dry_run else download(plan, progress)


def plan_download(
    model: str,
    to: Path | str | None = None,
    *,
    revision: str | None = None,
    diffusion_weights: str | None = None,
    offline: bool = False,
    progress: Progress = silent,
) -> FetchReport:
    """Find out what `fetch` would download. See there for the arguments and errors."""
    root = Path(to) if to is not None else default_root()
    if root.exists() and not root.is_dir():
        raise InputError(f"{root} is no folder; choose another place")
    problem = "offline, so the hub was not asked" if offline else None
    repos = []
    for wanted in _wanted(model, revision, diffusion_weights):
        here = inspect_folder(repo_folder(root, wanted.repo), wanted, progress)
        if problem is not None or here.settled:
            repos.append(replace(here, problem=problem))
            continue
        try:
            with require_export(_PURPOSE):
                from refdiff.models.hub.download import plan_repo
            repos.append(plan_repo(wanted, root, progress))
        except MissingDependencyError as error:
            repos.append(replace(here, problem=str(error)))
            if isinstance(error, UnreachableError):  # the next repository would only wait as long again
                problem = str(error)
    return FetchReport(model=model, folder=root, repos=tuple(repos))


def download(plan: FetchReport, progress: Progress = silent) -> FetchReport:
    """Download the missing files of a plan. See `fetch` for the errors."""
    if all(repo.listing is None for repo in plan.repos):
        return plan
    with require_export(_PURPOSE):
        from refdiff.models.hub.download import download_repo
    return replace(plan, repos=tuple(download_repo(repo, progress) for repo in plan.repos))


def _wanted(model: str, revision: str | None, diffusion_weights: str | None) -> tuple[HubName, ...]:
    if diffusion_weights not in (None, "ema", "non-ema"):
        raise InputError(f"unknown --diffusion-weights {diffusion_weights!r}; choose one of: ema, non-ema")
    preset = PRESETS.get(model)
    if preset is not None:
        if revision is not None:
            raise InputError(f"{model} is several repositories: fetch them one by one to choose a --revision")
        return tuple(
            HubName(repo=source.repo, non_ema=source.has_both and diffusion_weights != "ema")
            for source in preset.sources
        )
    if "/" not in model:
        raise InputError(
            f"unknown model {model!r}; choose one of: {', '.join(PRESETS)}, or name owner/name on the hub"
            + ("; the miniature is built in, there is nothing to fetch" if model in MINIATURES else "")
        )
    wanted = parse_hub_name(model)
    if revision is not None and wanted.revision not in (None, revision):
        raise InputError(f"got revision {wanted.revision} and --revision {revision}; give one of them")
    non_ema = diffusion_weights == "non-ema"
    return (replace(wanted, revision=revision or wanted.revision, non_ema=non_ema),)


def _repo_json(repo: RepoState) -> dict[str, Any]:
    return {
        "repo": repo.wanted.repo,
        "folder": str(repo.folder),
        "url": repo.url(),
        "commit": repo.commit,
        "licence": repo.licence,
        "complete": repo.complete,
        "problem": repo.problem,
        "files": [_file_json(repo, row) for row in repo.files],
    }


def _file_json(repo: RepoState, row: FileRow) -> dict[str, Any]:
    return {
        "name": row.name,
        "state": row.state,
        "size_bytes": row.size_bytes,
        "sha256": row.sha256,
        "path": str(repo.folder / row.name),
        "url": repo.url(row.name),
    }


def fetch_section(report: FetchReport) -> Section:
    """Lay out a table per repository: its files, and which of them are missing and where they come from."""
    tables = [_repo_table(repo) for repo in report.repos]
    rows = [(repo, row) for repo in report.repos for row in repo.lacking]
    if missing_bytes := sum(_about_bytes(repo, row) or 0 for repo, row in rows):
        about = "about " if missing_bytes != report.to_download_bytes else ""
        total = f"to download: {about}{size_text(missing_bytes)}"
        tables[-1] = replace(tables[-1], footnotes=(*tables[-1].footnotes, total))
    return Section(tables=tables)


def _repo_table(repo: RepoState) -> Table:
    at = f" at {repo.commit[:12]}" if repo.commit else ""
    known = known_source(repo.wanted.repo)
    licence = repo.licence or (known.licence if known else "–")
    rows = []
    for row in repo.files:
        size_bytes = _about_bytes(repo, row)
        about = "about " if row.size_bytes is None else ""
        size = "–" if size_bytes is None else about + size_text(size_bytes)
        rows.append((row.name, size, licence, (row.sha256 or "–")[:16], row.state))
    missing: list[str] = []
    if repo.problem and not repo.complete:
        names = [row.name for row in repo.lacking] or ["all files of the model"]
        missing = ["put there, under the same names:", *(f"  {name}" for name in names)]
    columns = (
        *(Column("file", wrap=True), Column("size", numeric=True), Column("licence", wrap=True, optional=2)),
        *(Column("sha256", optional=1), Column("state", wrap=True)),
    )
    return Table(
        title=f"\n{repo.wanted.repo}{at}   {repo.url()}\nin {repo.folder}",
        columns=columns,
        rows=rows,
        footnotes=missing,
    )


def _about_bytes(repo: RepoState, row: FileRow) -> int | None:
    """Return a file's size, or a preset's approximate one."""
    source = known_source(repo.wanted.repo)
    return source.about_bytes.get(row.name) if row.size_bytes is None and source else row.size_bytes
