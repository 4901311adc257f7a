"""The setting of a picture in words: what was trained, how, and how it was measured."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from typing import Any

# Values longer than this, like lists of eigenvalues, are left to the attributes.
_LONGEST = 24
_SAMPLING = {
    "without_replacement": "batches without replacement",
    "with_replacement": "batches with replacement",
    "bernoulli": "Bernoulli batches",
}


def is_linear(attrs: Mapping[Hashable, Any]) -> bool:
    """Say whether the attributes of a result are those of a model without curvature."""
    curvature = str(attrs.get("curvature", "None"))
    drawn = str(attrs.get("model", "curvature: none"))
    return "limit" not in attrs and curvature == "None" and "curvature: none" in drawn


def setting(attrs: Mapping[Hashable, Any], *, replicas: int | None = None) -> list[str]:
    """Return the setting of a result, part by part, as far as its attributes say.

    Parameters
    ----------
    attrs : mapping
        Attributes of a result.
    replicas : int, optional
        Number of replicas where the attributes don't say it.

    Returns
    -------
    list of str
        Source, curvature, SGD, steps and replicas; nothing about what is unknown.
    """
    return [*_source(attrs), *_curvature(attrs), *_sgd(attrs), *_run(attrs, replicas)]


def _source(attrs: Mapping[Hashable, Any]) -> list[str]:
    """Return numbers of data points and parameters, and the law of the NTK."""
    parts = [_count(attrs["n_data"], "data point")] if "n_data" in attrs else []
    if "limit" in attrs or attrs.get("kind") in ("large-P limit", "edge at large P"):
        parts.append(f"large-P limit (order {attrs['truncation_order']})")
    elif "n_params" in attrs:
        parts.append(_count(attrs["n_params"], "parameter"))
    if "jacobian" in attrs:
        parts.append(law_in_words(str(attrs["jacobian"]), "NTK"))
    elif "model" in attrs:
        parts.append("given model" if "n_params" in attrs else "given NTK")
    return parts


def _curvature(attrs: Mapping[Hashable, Any]) -> list[str]:
    """Return strength or law of the curvature, and the residual that it acts on."""
    if "curvature_strength" in attrs:
        parts = [f"q = {attrs['curvature_strength']:.3g}"]
    elif is_linear(attrs) and ("curvature" in attrs or "model" in attrs):
        return ["no curvature"]
    elif "curvature" in attrs:
        parts = [law_in_words(str(attrs["curvature"]), "curvature")]
    else:
        return []
    if "residual" in attrs:
        parts.append(law_in_words(str(attrs["residual"]), "residual"))
    return parts


def _sgd(attrs: Mapping[Hashable, Any]) -> list[str]:
    """Return the options of SGD that are not off, and how batches are drawn."""
    parts = []
    if "learning_rate" in attrs:
        rate = attrs["learning_rate"]  # a rule is kept as text
        shown = rate if isinstance(rate, str) else f"{rate:.4g}"
        parts.append(rf"$\eta$ = {shown}")
    if "batch_size" in attrs:
        parts.append(f"B = {attrs['batch_size']}")
    if attrs.get("momentum"):
        kind = "Nesterov momentum" if attrs.get("nesterov") else "momentum"
        parts.append(f"{kind} {attrs['momentum']:g}".replace("-", "\N{MINUS SIGN}"))
    if attrs.get("weight_decay"):
        parts.append(f"weight decay {attrs['weight_decay']:.3g}")
    if "sampling" in attrs:
        parts.append(_SAMPLING.get(str(attrs["sampling"]), str(attrs["sampling"])))
    return parts


def _run(attrs: Mapping[Hashable, Any], replicas: int | None) -> list[str]:
    """Return what was run: steps, replicas, sequences of batches."""
    replicas = attrs.get("replicas", replicas)
    counts = {"step": attrs.get("steps"), "replica": replicas}
    parts = [_count(count, what) for what, count in counts.items() if count is not None]
    if attrs.get("batch_sequences", 1) > 1:
        parts[-1] += rf" $\times$ {attrs['batch_sequences']} batch sequences"
    return parts


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def law_in_words(text: str, what: str) -> str:
    """Return the representation of a law, like "PowerLaw(exponent=1.0)", in words.

    Parameters
    ----------
    text : str
        The representation.
    what : str
        What it is the law of.

    Returns
    -------
    str
        "power law NTK (exponent 1)": parameters that are None, a scale of 1 and long ones go
        without saying.
    """
    name, _, rest = text.partition("(")
    options, _, remark = rest.rpartition(")")
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.removesuffix(what.capitalize()))
    words = " ".join(word if word in _NAMES else word.lower() for word in words.split())
    shown = []
    for key, value in re.findall(r"(\w+)=((?:\([^()]*\)|<[^<>]*>|[^,()<>])+)", options):
        short = _short(value.strip())
        if short and (key, short) != ("scale", "1"):
            shown.append(f"{key.replace('_', ' ')} {short}")
    if "n_params=" in remark:  # of the large-P limit, whose spectrum has a P of its own
        shown.append(f"P = {remark.partition('n_params=')[2]}")
    return f"{words} {what}" + (f" ({', '.join(shown)})" if shown else "")


# Words of names that keep their capital.
_NAMES = ("Gaussian", "Marchenko", "Pastur", "Stieltjes", "Kronecker", "Haar")


def _short(text: str) -> str:
    """Return the value of a parameter in few characters, nothing if it has none."""
    if text == "None" or len(text) > _LONGEST:
        return ""
    return re.sub(r"\d+\.?\d*(?:e[-+]?\d+)?", lambda found: f"{float(found[0]):.3g}", text)
