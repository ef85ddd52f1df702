"""`deepmcat train`: from a dataset to an artifact."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from deepmcat_core import config as configs
from deepmcat_core.errors import ConfigError
from deepmcat_trainer import checkpoint as checkpoints
from deepmcat_trainer import dataset as datasets
from deepmcat_trainer import provenance, recipes
from deepmcat_trainer.budget import Budget, parse_duration
from deepmcat_trainer.checkpoint import RunKey
from deepmcat_trainer.dataset import Dataset
from deepmcat_trainer.distributed import joined, leave, own_device
from deepmcat_trainer.features import SplitImages
from deepmcat_trainer.finish import finish
from deepmcat_trainer.monitor import EpochReport
from deepmcat_trainer.previous import consult
from deepmcat_trainer.recipes.base import Recipe, Trained
from deepmcat_trainer.run import Run
from deepmcat_trainer.settings import RecipeSettings
from deepmcat_trainer.splits import Split
from deepmcat_trainer.summary import print_summary
from deepmcat_trainer.targets import require_folder, unwritable


def command(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="A folder that `deepmcat prepare` made.")],
    out: Annotated[Path, typer.Option("--out", metavar="ARTIFACT", help="The artifact to make.")],
    recipe: Annotated[
        str | None, typer.Option(metavar="RECIPE", help=f"The training method: {', '.join(recipes.RECIPES)}.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="Settings of the recipe; `recipe` may be among them.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="One setting, such as epochs=5 or final.fine_k=64."),
    ] = None,
    previous: Annotated[
        Path | None,
        typer.Option(metavar="ARTIFACT", help="An earlier artifact, whose category ids and names live on."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    time_budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="Stop before an epoch that would not fit: 90s, 10m, 2h.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after the last finished epoch.")] = False,
    seed: Annotated[int | None, typer.Option(help="Of everything random.")] = None,
) -> None:
    """Train an encoder, cluster the dataset with it, and write the artifact.

    Opens the fit and calibration splits, and never a label. The state after each epoch is kept beside ARTIFACT, in
    ARTIFACT.run, until the artifact is written. Started by torchrun, training is shared among its processes.
    """
    console = Console(stderr=True)
    budget = Budget(parse_duration(time_budget) if time_budget else None)
    _require_free(out)
    folder = out.with_name(f"{out.name}.run")
    stored = _run_to_resume(folder, resume=resume)
    given = _given(config, set_ or [], seed)
    configured = given.pop("recipe", None)
    name = recipe or configured or (stored.recipe if stored else None)
    chosen = recipes.find(str(name)) if name else recipes.default()
    if stored is not None and stored.recipe == chosen.name:
        given = configs.merged(stored.settings | {"final": stored.final}, given)  # what is not said again stays
        previous = previous or (Path(stored.previous) if stored.previous else None)
    settings: RecipeSettings = configs.validate(chosen.settings, given)
    data = Dataset.open(dataset)
    key = RunKey(
        recipe=chosen.name,
        settings=settings.model_dump(mode="json", exclude={"final"}),
        dataset=_fingerprint(data),
        final=settings.final.model_dump(mode="json"),
        previous=str(previous.absolute()) if previous else None,
    )
    if stored is not None:
        key.require_equal(stored, folder)
    chosen_device = own_device(device)
    fit = data.indices(Split.FIT)
    settings.final.clusters_for(len(fit))  # refuses what the final stage would refuse, before hours of training
    require_folder(out.parent, "--out", called=out.name)
    before = None
    try:
        with joined(chosen_device) as world:
            run = Run(
                folder=folder, key=key, device=chosen_device, budget=budget, console=console, resume=resume, world=world
            )
            if not name:
                run.say(_default_line(chosen))
            if previous and world.first:
                before = consult(previous, data, run.device)
            trained = chosen.train(SplitImages(data.images, fit, run.device), settings, run)
        if not world.first:
            leave()
        finished = finish(
            trained.encoder, data, settings.final, _training(chosen, settings, trained), out,
            device=run.device, console=console, previous=before,
        )  # fmt: skip
    except KeyboardInterrupt:
        if checkpoints.exists(folder):
            run.say("interrupted: the same command with --resume goes on after the last finished epoch")
        raise
    checkpoints.remove(folder)
    print_summary(finished, Console())


def _require_free(out: Path) -> None:
    """Nothing is overwritten. Raises ConfigError."""
    try:
        taken = out.exists()
    except OSError as error:
        raise unwritable(out, "--out", error) from error
    if taken:
        raise ConfigError(f"{out} exists already; choose another --out or remove it")


def _run_to_resume(folder: Path, *, resume: bool) -> RunKey | None:
    """What the unfinished run is of. Raises ConfigError where there is one and it is not asked for, and vice versa."""
    if checkpoints.exists(folder):
        if not resume:
            raise ConfigError(f"{folder} holds an unfinished run: go on with --resume, or remove it to begin anew")
        return checkpoints.read_key(folder)
    if resume:
        lack = f"{folder} has no finished epoch" if folder.exists() else f"there is no {folder}"
        raise ConfigError(f"nothing to resume: {lack}; correct --out, or leave --resume away to begin anew")
    return None


def _given(config: Path | None, settings: list[str], seed: int | None) -> dict[str, Any]:
    """What a person has set: the file, --set over it, --seed over both."""
    given = configs.merged(configs.read_file(config) if config else {}, configs.parse_settings(settings))
    if seed is not None:
        final = given.get("final", {})
        given = given | {"seed": seed, "final": {"seed": seed, **final} if isinstance(final, dict) else final}
    return given


def _default_line(recipe: Recipe[Any]) -> str:
    """What somebody reads who named no recipe."""
    others = ", ".join(other for other in recipes.RECIPES if other != recipe.name)
    return f"recipe {recipe.name}: {recipe.summary} (others: {others})"


def _fingerprint(data: Dataset) -> str:
    """SHA-256 over what the dataset says of itself and of each row, digests of the images among it."""
    digest = hashlib.sha256()
    for name in (datasets.INFO, datasets.MANIFEST):
        digest.update((data.path / name).read_bytes())
    return digest.hexdigest()


def _training(recipe: Recipe[Any], settings: RecipeSettings, trained: Trained) -> dict[str, Any]:
    """What the manifest says of how the encoder came to be. The folder of an hf: encoder is nobody's business."""
    config = settings.model_dump(mode="json") | {"encoder": settings.encoder.partition(":")[0]}
    return {
        "recipe": recipe.name,
        "config": config,
        "commit": provenance.commit(),
        "version": provenance.version(),
        "seed": settings.seed,
        "epochs": len(trained.history),
        "scores": _scores(trained.history[-1]) if trained.history else {},
    }


def _scores(report: EpochReport) -> dict[str, Any]:
    """What the last epoch looked like, without how long it took."""
    kept = ("loss", "k", "nmi", "empty", "largest_share", "spread", "effective_rank")
    return {name: value for name, value in asdict(report).items() if name in kept}
