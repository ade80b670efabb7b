"""The registries, one for each kind of plugin, and how a spec becomes an instance."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

from bench.errors import BadInput, one_line
from bench.plugins.code import code_sha256
from bench.plugins.registry import Alias, Registry
from bench.spec import Params, Spec, canonical, identity_params, nearest, parse, read_params, unnest

if TYPE_CHECKING:
    from bench.attack import Attack
    from bench.data.dataset import Dataset
    from bench.defense import Defense
    from bench.diffusion.source import DiffusionSource
    from bench.models.source import ClassifierSource

DEFENSES: Registry[Defense[Any]] = Registry("defense", "bench.defenses", "bench.defense:Defense")
ATTACKS: Registry[Attack[Any]] = Registry("attack", "bench.attacks", "bench.attack:Attack")
DATASETS: Registry[Dataset[Any]] = Registry(
    "dataset", "bench.datasets", "bench.data.dataset:Dataset"
)
CLASSIFIERS: Registry[ClassifierSource[Any]] = Registry(
    "classifier", "bench.classifiers", "bench.models.source:ClassifierSource"
)
DIFFUSION_MODELS: Registry[DiffusionSource[Any]] = Registry(
    "diffusion model", "bench.diffusion_models", "bench.diffusion.source:DiffusionSource"
)
# Studies are built on the engine, which imports this module: their type is not named here.
STUDIES: Registry[Any] = Registry("study", "bench.studies", "bench.studies.study:Study")

BASE = "undefended"
"""The one defense that the engine knows by name: every row is compared with it."""

# What an attack's name may carry behind a plus sign: settings of the Victim, not of the attack.
MODIFIERS = {
    "eot": ("randomness", "eot"),
    "replay": ("randomness", "replay"),
    "bpda": ("gradient", "bpda"),
}
SETTINGS = ("gradient", "randomness")


class _Plugin(Protocol):
    Params: type[Params]
    version: int


T = TypeVar("T")


@dataclass(frozen=True)
class Named(Generic[T]):
    """A plugin instance with what identifies it.

    Attributes:
        name: registered name, or `file.py@name`.
        spec: the canonical printed form.
        plugin: the instance.
        given: the parameters that the user wrote; the others took their defaults.
        source: hash of the code, where Python gave the plugin as an object.
    """

    name: str
    spec: str
    plugin: T
    given: tuple[str, ...]
    source: str = ""

    @property
    def identity(self) -> dict[str, Any]:
        """What enters an identity: name, version and every parameter, defaults included; a
        parameter that names a file is its content.

        A plugin from a file is its file: an edit makes another plugin, whatever its version says.
        """
        plugin = cast(Any, self.plugin)
        path, _, name = self.name.rpartition("@")
        source = {"source": self.source} if self.source else {}
        if path:
            source["source"] = hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest()
        return {
            "name": name,
            "version": plugin.version,
            "params": {**identity_params(plugin.params), **getattr(plugin, "contents", {})},
            **source,
        }


def create(registry: Registry[T], spec: Spec) -> Named[T]:
    """Instantiate the plugin that a spec names. Raises `BadInput` for unknown names and
    parameters.
    """
    spec = replace(spec, name=registry.known_name(spec.name))
    kind = registry.get(spec.name)
    if isinstance(kind, Alias):
        raise BadInput(f"{registry.kind} {spec.name!r} is an alias of {kind.spec}: give that")
    registry.check(kind, spec.name)
    plugin_kind = cast(type[_Plugin], kind)
    positional: str | None = getattr(kind, "positional", None)
    params = read_params(plugin_kind.Params, spec, f"{registry.kind} {spec.name!r}", positional)
    given = tuple(
        sorted([*spec.options, *([positional] if spec.positional and positional else [])])
    )
    try:
        plugin = cast(Any, kind)(params)
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(
            f"{registry.kind} {spec.name!r} cannot be made ({one_line(error)}): fix its __init__"
        ) from error
    return Named(spec.name, canonical(spec.name, params, positional), plugin, given)


def named(registry: Registry[T], given: T | type[T]) -> Named[T]:
    """A plugin that Python gives as an instance, or as a class with its default parameters.

    A registered class goes by its registered name. Another one goes by its own, and its code
    enters the identity.

    Raises:
        BadInput: where it is no plugin of this kind, or cannot be made without parameters.
    """
    kind = cast(Any, given if isinstance(given, type) else type(given))
    registry.check(kind, kind.__name__)
    plugin = cast(Any, kind() if isinstance(given, type) else given)
    known = registry.name_of(kind)
    name = known or kind.__name__
    positional: str | None = getattr(kind, "positional", None)
    return Named(
        name,
        canonical(name, plugin.params, positional),
        plugin,
        tuple(sorted(plugin.params.model_fields_set)),
        "" if known else code_sha256(kind),
    )


@dataclass(frozen=True)
class AttackChoice:
    """An attack with the settings of the Victim that its spec fixed; None where the spec left them
    open.
    """

    attack: Named[Attack[Any]]
    gradient: str | None
    randomness: str | None


def create_attack(text: str) -> AttackChoice:
    """Read `pgd`, `bpda`, `pgd+replay`, `bpda+eot:steps=40`,
    `pgd:gradient=bpda,randomness=(eot:k=5)`.
    """
    spec = _expand(parse(text))
    settings = {key: unnest(spec.options[key]) for key in SETTINGS if key in spec.options}
    rest = {key: value for key, value in spec.options.items() if key not in SETTINGS}
    _check_misplaced(spec.name, rest, settings.get("randomness", ""))
    attack = create(ATTACKS, Spec(spec.name, spec.positional, rest))
    return AttackChoice(attack, settings.get("gradient"), settings.get("randomness"))


def _check_misplaced(name: str, options: Mapping[str, str], randomness: str) -> None:
    """Raise `BadInput` where an option of the randomness was given to the attack: `pgd+eot:k=5`."""
    if not (randomness and options):
        return
    # Imports torch, which most commands do without.
    from bench.randomness import options_of

    model = parse(randomness).name
    known = cast(Any, ATTACKS.get(name)).Params.model_fields
    for key in sorted(options_of(model) & set(options) - set(known)):
        raise BadInput(
            f"{key} is an option of {model}, not of attack {name!r}: in place of "
            f"{key}={options[key]} write randomness=({model}:{key}={options[key]})"
        )


def _expand(spec: Spec) -> Spec:
    name, *modifiers = spec.name.split("+") if "@" not in spec.name else [spec.name]
    name, modifiers = ATTACKS.known_name(name), [modifier.lower() for modifier in modifiers]
    options = dict(spec.options)
    for modifier in modifiers:
        if modifier not in MODIFIERS:
            raise BadInput(
                f"unknown modifier '+{modifier}' in attack "
                f"{spec.name!r}.{nearest(modifier, MODIFIERS)}"
            )
        key, value = MODIFIERS[modifier]
        given = options.setdefault(key, value)
        if parse(unnest(given)).name != value:
            raise BadInput(f"attack {spec.name!r} says +{modifier}, but {key}={given}: keep one")
    target = ATTACKS.get(name)
    if not isinstance(target, Alias):
        return Spec(name, spec.positional, options)
    base = parse(target.spec)
    clash = [key for key, value in base.options.items() if options.get(key, value) != value]
    if clash:
        raise BadInput(
            f"attack {name!r} means {target.spec}, but {clash[0]}={options[clash[0]]} was given: "
            "keep one"
        )
    return _expand(Spec(base.name, spec.positional, {**base.options, **options}))
