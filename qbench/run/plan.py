"""What a sweep will run: recipes, their references, and every check that needs no model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from qbench import prompts, textfile
from qbench.engines import exported
from qbench.errors import InputError, Mistakes, nearest
from qbench.optimizations import calibration
from qbench.pipelines import specs
from qbench.prompts import PromptSet
from qbench.quality import networks
from qbench.recipe import shipped
from qbench.recipe.files import Loaded, fields, read
from qbench.recipe.schema import Recipe, digest

# What an override says about the recipes that were named, and never about what they are compared
# with; every other field (model, generation, prompts, measure ...) has to be the same for both.
OWN = ("name", "about", "expects", "noise_floor")


@dataclass(frozen=True)
class Vouched:
    """Whose machine code may be loaded that was not exported on this machine."""

    all: bool = False
    digests: tuple[str, ...] = ()  # SHA-256 of manifests


NOBODY = Vouched()


@dataclass(frozen=True)
class Planned:
    """A recipe with what the command line changed about it."""

    recipe: Recipe
    prompts: PromptSet  # read once: a file may change while the sweep runs
    overrides: dict[str, str] = field(default_factory=dict)
    implied: bool = False  # the reference of another, not named itself
    notes: tuple[str, ...] = ()  # what the user must hear before it runs


def plan(
    paths: list[Path],
    overrides: Mapping[str, str],
    options: Mapping[str, str] | None = None,
    trust_torchscript: bool = False,
    vouched: Vouched = NOBODY,
) -> list[Planned]:
    """The recipes of these files, each reference before those that are compared with it.

    A reference that is not named is found in the recipe's own folders, else among those shipped,
    and one of those is measured as the recipe is: of its model, at its size. So recipes of several
    models, or sizes, that name a shipped one have one each.
    Overrides of `variant`, name, about, expects and noise_floor change the recipes that are named
    and no recipe that another of this sweep is compared with, named or not; all others change
    both. trust_torchscript writes the SHA-256 of a TorchScript network for FVD into the recipes, as
    it is now, so that it is loaded. vouched: for machine code in exported folders. Raises
    InputError for what no run of this plan could succeed with.
    """
    files = list({textfile.resolved(path): path for path in paths}.values())
    reading = _Reading(overrides, options or {}, trust_torchscript, vouched)
    written, named = _named(files, reading)
    implied: dict[tuple[str, str], _Found] = {}
    for name, one in named.items():
        wanted = one.item.recipe.reference
        if wanted is None or one.item.recipe.is_reference:
            continue
        other = _among_named(one, wanted, named)
        if other is None:
            other = _among_implied(one, wanted, implied, written, reading)
        if differing := differing_settings(one.item.recipe, other):
            note = f"{name} will not be compared with {wanted}, which differs in {differing}"
            named[name] = one.noted(note)
    _note_floors_apart(named)
    everything = [one.item for one in (*implied.values(), *named.values())]
    spelled = [replace(item, recipe=_one_spelling(item.recipe)) for item in everything]
    return _told_once(sorted(spelled, key=lambda item: not item.recipe.is_reference))


@dataclass(frozen=True)
class _Found:
    """A planned recipe and the file that it was read from."""

    item: Planned
    loaded: Loaded

    def noted(self, note: str) -> _Found:
        return replace(self, item=replace(self.item, notes=(*self.item.notes, note)))


@dataclass(frozen=True)
class _Reading:
    """How files are read: with overrides for all, or also with those for one alone."""

    overrides: Mapping[str, str]
    options: Mapping[str, str]
    trust_torchscript: bool
    vouched: Vouched

    @property
    def shared(self) -> dict[str, str]:
        return {key: text for key, text in self.overrides.items() if not _own(key)}

    @property
    def apart(self) -> bool:
        """Whether there are any for one alone."""
        return dict(self.overrides) != self.shared

    def as_shared(self, path: Path) -> Loaded:
        return self._read(path, self.shared)

    def as_own(self, path: Path) -> Loaded:
        return self._read(path, self.overrides)

    def _read(self, path: Path, changes: Mapping[str, str]) -> Loaded:
        read_ = exported.recipe_of if shipped.is_exported(path) else read
        loaded = read_(path, changes, self.options)
        exported.check(loaded.recipe, self.vouched.all, self.vouched.digests)
        if self.trust_torchscript:
            return replace(loaded, recipe=_trusting(loaded.recipe))
        return loaded


def _named(files: list[Path], reading: _Reading) -> tuple[list[Loaded], dict[str, _Found]]:
    """The files as they are with what is for all, and the recipes of the sweep by their names.

    Raises InputError with all that is wrong with any of them.
    """
    mistakes = Mistakes()
    written: list[Loaded] = []
    for path in files:
        with mistakes.kept():
            written.append(reading.as_shared(path))
    compared = {one.recipe.reference for one in written if not one.recipe.is_reference}
    named: dict[str, _Found] = {}
    for plain in written:
        with mistakes.kept():
            kept = not reading.apart or plain.recipe.name in compared
            loaded = plain if kept else reading.as_own(plain.path)
            name = loaded.recipe.name
            if name in named:
                raise InputError(_twice(loaded, named[name].loaded, reading.overrides))
            applied = reading.shared if kept else dict(reading.overrides)
            notes = (_unchanged(name, reading.overrides),) if kept and reading.apart else ()
            item = Planned(loaded.recipe, _checked(loaded), applied, notes=notes)
            named[name] = _Found(item, loaded)
    if not written and reading.apart:  # none was read with the options that are for one alone
        with mistakes.kept():
            reading.as_own(files[0])
    mistakes.tell()
    return written, named


def _among_named(one: _Found, wanted: str, named: Mapping[str, _Found]) -> Recipe | None:
    """What a recipe is compared with, if that was named and is measured as it is, or not shipped.

    Raises InputError where that is compared with another itself.
    """
    there = named.get(wanted)
    if there is None:
        return None
    if _settings(there.item.recipe) != _settings(one.item.recipe) and _is_shipped(there.loaded):
        return None
    _end_of_chain(there.item.recipe, one.item.recipe, one.loaded)
    return there.item.recipe


def _among_implied(
    one: _Found,
    wanted: str,
    implied: dict[tuple[str, str], _Found],
    written: list[Loaded],
    reading: _Reading,
) -> Recipe:
    """What a recipe is compared with, of those that were not named; added to them if it is new."""
    place, closed = _beside(one.loaded, wanted, written)
    referred = reading.as_shared(place)
    other = _reference(referred, one.item.recipe)
    key = wanted, _settings(other)
    if key not in implied:
        first = not any(name == wanted for name, _ in implied)
        told = [f"{wanted} is the shipped one: {line}" for line in closed]
        if first and _variant(reading.overrides):
            told.append(_unchanged(wanted, reading.overrides))
        chosen = _checked(replace(referred, recipe=other))
        item = Planned(other, chosen, reading.shared, implied=True, notes=tuple(told))
        implied[key] = _Found(item, referred)
    elif implied[key].item.recipe.variant != other.variant:
        raise InputError(_twice(referred, implied[key].loaded, reading.overrides))
    return other


def _note_floors_apart(named: dict[str, _Found]) -> None:
    """Have the first of the shipped floors say that nothing named with them rests on them."""
    floors = [name for name, one in named.items() if one.item.recipe.noise_floor]
    floors = [name for name in floors if _is_shipped(named[name].loaded)]
    recipes = [one.item.recipe for one in named.values()]
    if note := _apart([named[name].item.recipe for name in floors], recipes):
        named[floors[0]] = named[floors[0]].noted(note)


def differing_settings(one: Recipe, other: Recipe) -> str:
    """The fields that runs must share to be compared and these do not, by their dotted names."""
    a, b = (fields(_one_spelling(recipe).measured_settings()) for recipe in (one, other))
    return ", ".join(name for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name))


def settings_of(recipe: Recipe) -> str:
    """What a planned recipe and its reference have in common: how, and where, both are measured."""
    return digest([recipe.settings_fingerprint(), recipe.device])


def _settings(recipe: Recipe) -> str:
    """`settings_of` a recipe whose model has still the name that its file gives it."""
    return settings_of(_one_spelling(recipe))


def _reference(other: Loaded, recipe: Recipe) -> Recipe:
    """What `recipe` is compared with, by the file that its name stands for."""
    # What its own file compares it with is no part of this sweep.
    itself = {"name": recipe.reference, "reference": recipe.reference}
    if _is_shipped(other):
        itself |= {name: getattr(other.recipe, name) for name in (*OWN, "variant") - itself.keys()}
        return recipe.model_copy(update=itself)
    return other.recipe.model_copy(update=itself)


def _told_once(made: list[Planned]) -> list[Planned]:
    """The same with a note on each size that a model was not trained at, on its first recipe.

    A run keeps the note in its record; whoever is to wait for the videos hears of it before.
    """
    told: set[str] = set()
    found = []
    for item in made:
        recipe, notes = item.recipe, item.notes
        model = specs.find(recipe.model)
        size = specs.video_shape(model, recipe.generation) if model.trained else None
        note = model.unlearned(*size) if size and recipe.weights != "random" else None
        if note and note not in told:
            told.add(note)
            notes = (*notes, note)
        found.append(replace(item, notes=notes))
    return found


def _apart(floors: list[Recipe], recipes: list[Recipe]) -> str:
    """A sentence where shipped floors were named and nothing named with them rests on them."""
    judged = [r for r in recipes if not (r.noise_floor or r.is_reference)]
    theirs = {(_settings(recipe), recipe.reference) for recipe in judged}
    if not floors or not judged or any((_settings(r), r.reference) in theirs for r in floors):
        return ""
    floor, first = floors[0], judged[0]
    if floor.reference != first.reference:
        why = f"is compared with {first.reference}, and they are of {floor.reference}"
    else:
        why = f"differs from them in {differing_settings(first, floor) or 'device'}"
    names = ", ".join(recipe.name for recipe in floors)
    more = f" or {len(judged) - 1} others" if len(judged) > 1 else ""
    return (
        f"{names}: no verdict on {first.name}{more} rests on them: {first.name} {why}; leave them "
        "out, and --floors measures its own"
    )


def _is_shipped(loaded: Loaded) -> bool:
    return textfile.resolved(loaded.path).is_relative_to(shipped.FOLDER.resolve())


def outputs_bytes(planned: list[Planned]) -> int:
    """About what the raw videos of a sweep will take on disk; models of unknown size count 0."""
    from qbench.quality.outputs import video_bytes

    total = 0
    for item in planned:
        recipe = item.recipe
        if recipe.measure.unit == "step" or recipe.weights == "random":
            continue  # nothing is kept
        shape = specs.video_shape(specs.find(recipe.model), recipe.generation)
        total += video_bytes(*shape) * len(item.prompts.prompts) if shape else 0
    return total


def _own(key: str) -> bool:
    return key in OWN or key.partition(".")[0] == "variant"


def _variant(overrides: Mapping[str, str]) -> dict[str, str]:
    return {key: text for key, text in overrides.items() if key.partition(".")[0] == "variant"}


def _unchanged(name: str, overrides: Mapping[str, str]) -> str:
    own = " ".join(f"--set {key}={text}" for key, text in overrides.items() if _own(key))
    return f"{name} is what the others are compared with and stays as it is: {own} is for them"


def _twice(loaded: Loaded, other: Loaded, overrides: Mapping[str, str]) -> str:
    name = loaded.recipe.name
    if "name" in overrides:
        return f"--set name={name}: {other.path} and {loaded.path} would have one name; run one"
    return f"{loaded.where('name')}: a second recipe named {name!r}; the first is {other.path}"


def _end_of_chain(reference: Recipe, recipe: Recipe, loaded: Loaded) -> None:
    if not reference.is_reference:
        raise InputError(
            f"{loaded.where('reference')}: reference: {recipe.name} is compared with "
            f"{reference.name}, which is itself compared with {reference.reference}; "
            f"give both one reference: --set reference={reference.reference}"
        )


def _trusting(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"quality": networks.trusted(recipe.quality)})


def _beside(loaded: Loaded, name: str, others: list[Loaded]) -> tuple[Path, list[str]]:
    """The recipe of this name: below its folder, beside it, in the folder above, or shipped.

    And, where it is shipped, a line for each place before where nobody may look for it.

    An exported folder has left its recipe's neighbours: beside `others`, named with it, they are.
    """
    path = loaded.path
    folders = [loaded.root, path.parent, textfile.resolved(path).parent.parent]
    if loaded.recipe.variant.exported:
        folders += [place for one in others for place in (one.root, one.path.parent)]
    own = [folder / f"{name}.yaml" for folder in folders]
    for file in own:
        if textfile.is_file(file):
            return file, []
    closed = [textfile.closed(file) for file in dict.fromkeys(own) if textfile.is_closed(file)]
    if textfile.is_file(shipped.FOLDER / f"{name}.yaml"):
        return shipped.FOLDER / f"{name}.yaml", closed
    if loaded.recipe.variant.exported:
        raise InputError(
            f"{path}: its recipe is compared with {name!r}, which is neither beside the folder nor "
            "shipped: name that recipe's file as well, or --set reference=null",
            *closed,
        )
    beside = [*folders, shipped.FOLDER]
    there = {file.removesuffix(".yaml") for f in beside for file in shipped.recipe_files(f)}
    raise InputError(
        f"{loaded.where('reference')}: reference: no recipe {name!r} beside it or shipped"
        f"{nearest(name, there - {shipped.BASE})}",
        *closed,
    )


def _one_spelling(recipe: Recipe) -> Recipe:
    """With the model's one name: its hub id, or another path to its folder, is the same model."""
    return recipe.model_copy(update={"model": specs.find(recipe.model).spelling})


def _checked(loaded: Loaded) -> PromptSet:
    """The prompts, once all is checked that can be known to fail before a model is loaded."""
    recipe, mistakes = loaded.recipe, Mistakes()
    model = chosen = None
    with _placed(loaded, ("model",), mistakes):
        model = specs.find(recipe.model)
    if model:
        with _placed(loaded, ("generation",), mistakes):
            specs.check(model, recipe.generation)
        with _placed(loaded, ("quality",), mistakes):
            networks.check(recipe.quality, model)
        with _placed(loaded, ("prompts", "set"), mistakes):
            chosen = prompts.chosen(recipe.prompts, model)
    settings = recipe.variant.quantize.calibration if recipe.variant.quantize else None
    if model and chosen and settings:
        with _placed(loaded, ("variant", "quantize", "calibration", "set"), mistakes):
            calibration.texts(settings, model, chosen.prompts)
    mistakes.tell()
    assert chosen
    return chosen


@contextmanager
def _placed(loaded: Loaded, field_: tuple[str, ...], mistakes: Mistakes) -> Iterator[None]:
    """Keep what is wrong with a field, with the file and line, or the option, that it is from."""
    try:
        yield
    except InputError as error:
        for line in error.lines:
            where = loaded.where(*_field(line, field_))
            named = where.startswith("--") and loaded.recipe.prompts.set
            again = named and line.startswith(f"{loaded.recipe.prompts.set}:")
            mistakes.add(line if again else f"{where}: {line}")


def _field(message: str, otherwise: tuple[str, ...]) -> tuple[str, ...]:
    """The field that a message begins with ('generation.frames: 12 is not ...')."""
    first = message.partition(": ")[0]
    return tuple(first.split(".")) if first.startswith(otherwise[0] + ".") else otherwise
