"""Objects as plain values, ``{"class_path": ..., "init_args": {...}}``, and back."""

import difflib
import functools
import importlib
import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

Spec = dict[str, Any]

BARE_NAME_MODULES = (
    "firstlight.lightning_modules",
    "torch.optim",
    "torch.optim.lr_scheduler",
    "torch.nn",
)
DEPRECATED = {"size_average", "reduce"}  # torch's losses take but do not keep them


def to_spec(value: object, what: str, expected: type | tuple[type, ...]) -> Spec:
    """Describe an object by a class path and constructor arguments that rebuild it.

    Args:
        value: such a description already; a class or function of a module; a ``functools.partial``
            of one with keyword arguments; or an ``nn.Module``, whose constructor's arguments are
            read from its attributes of the same names.
        what: the argument's name, for errors.
        expected: what the rebuilt object must be.

    Returns:
        A dict of plain values (numbers, strings, lists, dicts, None).

    Raises:
        TypeError: when the object cannot be rebuilt, naming the part that stands in the way.
        ValueError: when the class path does not lead to what is expected, or an argument is
            unknown to it.
    """
    if isinstance(value, Mapping):
        spec = {key: plain(item, f"{what}.{key}") for key, item in value.items()}
        if "class_path" not in spec or set(spec) - {"class_path", "init_args", "dict_kwargs"}:
            raise ValueError(f"{what}: expected the keys class_path and init_args, got {set(spec)}")
        spec["init_args"] = {**spec.get("init_args", {}), **spec.pop("dict_kwargs", {})}
    elif isinstance(value, functools.partial):
        if value.args:
            raise TypeError(f"{what}: give the partial's arguments by keyword, not {value.args}")
        spec = {"class_path": _class_path(value.func, what), "init_args": dict(value.keywords)}
    elif isinstance(value, nn.Module):
        spec = {"class_path": _class_path(type(value), what), "init_args": _init_args(value, what)}
    else:
        spec = {"class_path": _class_path(value, what), "init_args": {}}
    target = _resolve(spec["class_path"], what, expected)
    spec["class_path"] = _class_path(target, what)
    _check_names(target, spec, what)
    spec["init_args"] = {k: plain(v, f"{what}.{k}") for k, v in spec["init_args"].items()}
    if isinstance(value, nn.Module):
        _check_rebuilt(value, spec, what)
    return spec


def from_spec(
    spec: Spec, *args: object, what: str, expected: type | tuple[type, ...], **kwargs: object
) -> Any:
    """Build the object that a spec describes; ``args`` come before its arguments.

    A list becomes a tensor where the constructor's annotation says tensor. Only a class of the
    expected kind, or a function annotated to return one, is ever called: a checkpoint's
    hyper-parameters cannot name anything else.

    Raises:
        ValueError: when the class path cannot be found or leads elsewhere.
        TypeError: when an argument is unknown.
    """
    target = _resolve(spec["class_path"], what, expected)
    _check_names(target, spec, what)
    hints = _hints(target)
    init_args = {
        name: _built(value, hints.get(name), f"{what}.{name}")
        for name, value in spec.get("init_args", {}).items()
    }
    return target(*args, **init_args, **kwargs)


def plain(value: object, what: str) -> Any:
    """Return a copy in plain values: what YAML, and ``torch.load(weights_only=True)``, can hold.

    Tuples become lists, paths text, numpy's scalars numbers, tensors (float32, int64 or bool)
    nested lists, modules specs. Anything else is refused by name.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{what}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{what}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Tensor) and value.dtype in (torch.float32, torch.int64, torch.bool):
        return value.tolist()
    if isinstance(value, nn.Module):
        return to_spec(value, what, nn.Module)
    if hasattr(value, "dtype") and getattr(value, "ndim", None) == 0:
        return value.item()  # type: ignore[attr-defined]  # numpy's scalars
    raise TypeError(
        f"{what}: {value!r} ({type(value).__name__}) cannot be written into a checkpoint as a "
        "plain value; pass numbers, text, lists or dicts, and objects as "
        '{"class_path": "package.Class", "init_args": {...}}'
    )


def _class_path(target: object, what: str) -> str:
    if isinstance(target, str):
        return target
    module, name = getattr(target, "__module__", None), getattr(target, "__qualname__", "<object>")
    if module is None or "<" in name:
        raise TypeError(
            f"{what}: {target!r} cannot be rebuilt from a checkpoint, for it has no name in a "
            'module; pass {"class_path": "package.Class", "init_args": {...}} instead'
        )
    public = _public_path(target, module, name)
    return public or f"{module}.{name}"


def _public_path(target: object, module: str, name: str) -> str | None:
    """The shortest package that exports the same object: torch.optim.SGD, not torch.optim.sgd."""
    parts = module.split(".")
    for depth in range(1, len(parts)):
        package = ".".join(parts[:depth])
        if getattr(importlib.import_module(package), name, None) is target:
            return f"{package}.{name}"
    return None


def _resolve(class_path: str, what: str, expected: type | tuple[type, ...]) -> Callable[..., Any]:
    module, _, name = class_path.rpartition(".")
    for candidate in [module] if module else BARE_NAME_MODULES:
        try:
            target = getattr(importlib.import_module(candidate), name, None)
        except ImportError as error:
            raise ValueError(f"{what}: cannot import {candidate} ({error})") from error
        if target is not None:
            break
    else:
        raise ValueError(f"{what}: there is no {class_path}; give the path package.module.Class")
    if isinstance(target, type):
        made: object = target
    else:
        made = _hints(target).get("return") if callable(target) else None
    if not (isinstance(made, type) and issubclass(made, expected)):
        names = " or ".join(t.__name__ for t in _as_tuple(expected))
        raise ValueError(
            f"{what}: {class_path} is not a class of {names}, nor a function annotated to return "
            "one"
        )
    return target  # type: ignore[no-any-return]


def _as_tuple(expected: type | tuple[type, ...]) -> tuple[type, ...]:
    return expected if isinstance(expected, tuple) else (expected,)


def _parameters(target: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(target).parameters


def _hints(target: object) -> dict[str, Any]:
    function = target.__init__ if isinstance(target, type) else target  # type: ignore[misc]
    try:
        return get_type_hints(function)
    except (NameError, TypeError, AttributeError):
        return {}


def _check_names(target: Callable[..., Any], spec: Spec, what: str) -> None:
    known = _parameters(target)
    if any(p.kind is p.VAR_KEYWORD for p in known.values()):
        return
    for name in spec.get("init_args", {}):
        if name not in known:
            near = difflib.get_close_matches(name, known, 3, 0.5) or list(known)
            raise ValueError(
                f"{what}: {spec['class_path']} takes no argument {name!r}; near names: "
                f"{', '.join(near)}"
            )


def _init_args(module: nn.Module, what: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    kind = type(module).__name__
    for name, parameter in _parameters(type(module)).items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise TypeError(
                f"{what}: {kind} takes *{name}, so its arguments cannot be read back; pass "
                '{"class_path": ..., "init_args": {...}} instead'
            )
        if hasattr(module, name):
            found[name] = getattr(module, name)
        elif name not in DEPRECATED:
            raise TypeError(
                f"{what}: {kind} does not keep its argument {name!r} as an attribute of that name, "
                'so it cannot be rebuilt from a checkpoint; store it, or pass {"class_path": ..., '
                '"init_args": {...}} instead'
            )
    return found


def _built(value: object, hint: object, what: str) -> object:
    if isinstance(value, Mapping) and "class_path" in value:
        return from_spec(dict(value), what=what, expected=nn.Module)
    if isinstance(value, list) and _is_tensor(hint):
        return torch.tensor(value)
    return value


def _is_tensor(hint: object) -> bool:
    return hint is Tensor or (get_origin(hint) is not list and Tensor in get_args(hint))


def _check_rebuilt(module: nn.Module, spec: Spec, what: str) -> None:
    rebuilt = from_spec(spec, what=what, expected=nn.Module)
    different = _difference(module, rebuilt)
    if different:
        raise TypeError(
            f"{what}: {type(module).__name__} rebuilt from its attributes differs from the given "
            f'one in {different!r}; pass {{"class_path": ..., "init_args": {{...}}}} instead'
        )


def _difference(one: nn.Module, other: nn.Module) -> str | None:
    """The first attribute or buffer by which two modules of a class differ, if any."""
    ours, theirs = _state(one), _state(other)
    for name in ours | theirs:
        if name not in ours or name not in theirs or not _equal(ours[name], theirs[name]):
            return name
    return None


def _state(module: nn.Module) -> dict[str, Any]:
    state = {k: v for k, v in vars(module).items() if not k.startswith("_") and k != "training"}
    state |= dict(module.named_buffers())
    state |= {name: p.shape for name, p in module.named_parameters()}  # values are checkpointed
    for name, child in module.named_children():
        state |= {f"{name}.{k}": v for k, v in _state(child).items()}
    return state


def _equal(a: object, b: object) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a.cpu(), b.cpu())
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return type(a) is type(b) and bool(a == b)
