"""What `bench info` shows of a plugin."""

from __future__ import annotations

import inspect
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from bench.defense import Card
from bench.errors import BadInput
from bench.plugins.create import MODIFIERS, SETTINGS, create
from bench.plugins.registry import Alias
from bench.spec import Params, Spec, nearest, parse, show_number

EXPECTED = {
    "base": "broken: no better than the undefended classifier under its first fitting attack",
    "share": "the share of its class, whatever the attack",
    "unknown": "known to be broken; which number is left here is not known",
    "": "",
}


def describe(name: str, registries: dict[str, Any]) -> dict[str, Any]:
    """Name, kind, description, parameters and card of the plugin called `name` or `kind/name`,
    whichever kind it is; of an attack also what an image costs, with the parameters behind its
    name.
    """
    kind, _, rest = name.partition("/")
    if kind in registries and "@" not in name:
        registries, name = {kind: registries[kind]}, rest
    kind = kind_of(name, registries)
    plugin = registries[kind].get(name if "@" in name else _bare(name))
    cost = _cost(name, registries[kind]) if kind == "attacks" else {}
    if isinstance(plugin, Alias):
        return {
            "name": name,
            "kind": kind,
            "alias_of": plugin.spec,
            **_of(parse(plugin.spec).name, kind, registries),
            **cost,
        }
    return {"name": name, "kind": kind, **_facts(plugin), **cost}


def kind_of(name: str, registries: dict[str, Any]) -> str:
    """The kind of the plugin called `name`, one of the registries' keys. Raises `BadInput` where
    there is none.
    """
    if "@" in name:
        return _kind_in_file(name, registries)
    kinds = [kind for kind, registry in registries.items() if _bare(name) in registry.names()]
    if len(kinds) > 1:
        raise BadInput(
            f"{name!r} is registered as several kinds: write "
            f"{' or '.join(f'{kind}/{name}' for kind in kinds)}"
        )
    if not kinds and name.endswith(".py"):
        raise BadInput(f"{name!r} is a file: say which class in it, as {name}@MyClass")
    if not kinds:
        known = [entry for registry in registries.values() for entry in registry.names()]
        raise BadInput(f"nothing is registered as {name!r}.{nearest(name, known)}")
    return kinds[0]


def _bare(name: str) -> str:
    """The name without modifiers. Raises `BadInput` for one that there is not."""
    bare, *modifiers = parse(name).name.split("+")
    for modifier in modifiers:
        if modifier.lower() not in MODIFIERS:
            raise BadInput(f"unknown modifier '+{modifier}'.{nearest(modifier, MODIFIERS)}")
    return bare


def _kind_in_file(name: str, registries: dict[str, Any]) -> str:
    """The kind of a plugin in a file, told by the contract that its class derives from."""
    plugin = registries["defenses"].get(name)
    for kind, registry in registries.items():
        if registry.holds(plugin):
            return kind
    contracts = "Defense, Attack, Dataset, ClassifierSource, DiffusionSource or Study"
    raise BadInput(f"{name!r} is no plugin: name a class that derives from {contracts}")


def _of(name: str, kind: str, registries: dict[str, Any]) -> dict[str, Any]:
    return _facts(registries[kind].get(name))


def _facts(plugin: Any) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "description": inspect.getdoc(plugin) or "",
        "version": plugin.version,
        "parameters": _parameters(plugin.Params, getattr(plugin, "positional", None)),
    }
    if hasattr(plugin, "default_eps"):
        facts.update(_images(plugin))
    card = getattr(plugin, "card", None)
    if card is not None:
        facts.update(paper=card.paper, note=card.note)
    if hasattr(plugin, "needs"):
        facts["data access"] = ", ".join(sorted(plugin.needs)) or "none"
        facts["gradients"] = ", ".join(plugin.gradients)
        facts.update(_answer(plugin.card))
    if hasattr(plugin, "uses"):
        facts["options"] = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(plugin.uses))
    return {key: value for key, value in facts.items() if value not in ("", [])}


def _cost(text: str, registry: Any) -> dict[str, str]:
    """What an image costs under an attack that does not break it; nothing where its parameters do
    not tell it. Raises `BadInput` for parameters that it does not take.
    """
    spec = parse(text)
    name = spec.name if "@" in spec.name else spec.name.split("+")[0]
    options = {key: value for key, value in spec.options.items() if key not in SETTINGS}
    plugin = registry.get(name)
    if isinstance(plugin, Alias):
        base = parse(plugin.spec)
        fixed = {key: value for key, value in base.options.items() if key not in SETTINGS}
        name, options = base.name, {**fixed, **options}
    try:
        attack = create(registry, Spec(name, spec.positional, options)).plugin
    except BadInput:
        if spec.positional or spec.options:
            raise
        return {}
    passes = attack.passes()
    if passes is None:
        return {}
    told = f"{passes.total:,} = {passes.forward:,} forward + {passes.backward:,} backward"
    return {"passes of a survivor": f"at most {told} (10 classes, one draw a query)"}


def _images(dataset: Any) -> dict[str, Any]:
    names, shape, norm, eps = (
        dataset.class_names,
        dataset.image_shape,
        dataset.default_norm,
        dataset.default_eps,
    )
    return {
        "classes": f"{len(names)}: {', '.join(names)}" if names else "",
        "image shape": " x ".join(map(str, shape)) if shape else "",
        "splits": ", ".join(f"{split} {n}" for split, n in dataset.splits.items()),
        "default threat": f"{norm} {show_number(eps)}" if eps else "none",
        "default classifier": dataset.default_classifier or "none",
        "licence": dataset.licence,
        "source": dataset.source,
    }


def _answer(card: Card) -> dict[str, str]:
    return {
        "surrogate": card.surrogate,
        "fitting attacks": ", ".join(card.attacks),
        "documented robustness": card.truth,
        "expected": EXPECTED[card.expected],
    }


def _parameters(params: type[Params], positional: str | None) -> list[dict[str, str]]:
    return [
        {
            "name": name + (" (positional)" if name == positional else ""),
            "type": _type_name(field.annotation),
            "default": "required"
            if field.is_required()
            else _shown(field.get_default(call_default_factory=True)),
            "meaning": field.description or "",
        }
        for name, field in params.model_fields.items()
    ]


def _type_name(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return "|".join(map(str, inner))
    if origin is Annotated:
        return _type_name(inner[0])
    if origin in (Union, UnionType):
        return " | ".join("None" if one is NoneType else _type_name(one) for one in inner)
    return getattr(annotation, "__name__", None) or str(annotation).replace("typing.", "")


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return "+".join(map(str, value))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value).lower() if isinstance(value, bool) else str(value)
    return show_number(value)


def render(described: dict[str, Any]) -> str:
    """Plain text."""
    lines = [f"{described['name']}  ({described['kind']})"]
    for key, value in described.items():
        if key == "parameters":
            lines.append("parameters")
            lines += [
                f"  {p['name']}: {p['type']} = {p['default'] or 'none'}  {p['meaning']}".rstrip()
                for p in value
            ]
        elif key not in ("name", "kind"):
            lines.append(f"{key}: {value}")
    return "\n".join(lines)
