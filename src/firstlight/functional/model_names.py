"""Names of timm's models, and what to say to one that it does not know."""

import difflib


def unknown_model(model_name: str) -> str:
    """Return the beginning of an error message that lists the near names of timm's registry.

    Example:
        >>> unknown_model("resnet5O")[:58]
        "timm has no model named 'resnet5O'; near names: resnet50, "
    """
    import timm

    architecture = model_name.partition(".")[0]
    near = difflib.get_close_matches(architecture, timm.list_models(), 5, 0.5)
    hint = f"near names: {', '.join(near)}" if near else "timm.list_models() lists the names"
    return f"timm has no model named {model_name!r}; {hint}"
