"""Networks to be measured: each treats its data points one by one."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from quadmodel._util.checks import as_choice, as_integer
from quadmodel.networks._torch import torch

ACTIVATIONS = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU, "gelu": torch.nn.GELU}
# Groups of channels that are normalised together.
_GROUPS = 8


def fully_connected(
    n_inputs: int, n_outputs: int, *, width: int = 64, depth: int = 2, activation: str = "tanh"
) -> Any:
    """Return a fully connected network.

    Parameters
    ----------
    n_inputs, n_outputs : int
        Numbers per data point; inputs of any shape are flattened.
    width, depth : int, optional
        Units per hidden layer, and hidden layers.
    activation : {"tanh", "relu", "gelu"}, optional
        Nonlinearity.

    Returns
    -------
    torch.nn.Module
        Maps (D, ...) to (D, n_outputs), with PyTorch's own initial parameters.

    Raises
    ------
    InputError
        If a number is below 1 or the nonlinearity is not known.
    """
    as_choice("activation", activation, tuple(ACTIVATIONS))
    sizes = [as_integer("n_inputs", n_inputs)]
    sizes += [as_integer("width", width)] * as_integer("depth", depth)
    layers: list[Any] = [torch.nn.Flatten()]
    for size, following in pairwise(sizes):
        layers += [torch.nn.Linear(size, following), ACTIVATIONS[activation]()]
    layers.append(torch.nn.Linear(sizes[-1], as_integer("n_outputs", n_outputs)))
    return torch.nn.Sequential(*layers)


def resnet18(n_outputs: int, *, channels: int = 3, width: int = 64) -> Any:
    """Return ResNet-18 for small images, with groups of channels normalised in place of batches.

    Batch normalisation ties data points to one another: a point's gradient, the neural tangent
    kernel and K are then those of a batch. Group normalisation keeps the scale of layers without.

    Parameters
    ----------
    n_outputs : int
        Outputs.
    channels : int, optional
        Channels of an image.
    width : int, optional
        Channels of the first stage, a multiple of 8; 64 in the original.

    Returns
    -------
    torch.nn.Module
        Maps (D, channels, height, width) to (D, n_outputs).

    Raises
    ------
    InputError
        If a number is out of range.

    References
    ----------
    .. [1] K. He et al., arXiv:1512.03385 (here with a first convolution of 3 x 3, without pooling,
       as is usual for images of 32 x 32); Y. Wu, K. He, arXiv:1803.08494.
    """
    width = _GROUPS * as_integer("width // 8", as_integer("width", width, low=_GROUPS) // _GROUPS)
    layers = [_convolution(as_integer("channels", channels), width, 3), _normal(width)]
    layers.append(torch.nn.ReLU())
    size = width
    for stage in range(4):
        following = width * 2**stage
        layers += [_Block(size, following, 1 if stage == 0 else 2), _Block(following, following, 1)]
        size = following
    layers += [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]
    layers.append(torch.nn.Linear(size, as_integer("n_outputs", n_outputs)))
    return torch.nn.Sequential(*layers)


def vision_transformer(
    n_outputs: int,
    *,
    channels: int = 1,
    image_size: int = 28,
    patch: int = 7,
    width: int = 32,
    depth: int = 2,
    heads: int = 2,
) -> Any:
    """Return a small vision transformer.

    Parameters
    ----------
    n_outputs : int
        Outputs.
    channels, image_size : int, optional
        Channels of an image, and its height and width.
    patch : int, optional
        Height and width of a patch, which divides `image_size`.
    width, depth, heads : int, optional
        Numbers per patch, attention layers, and heads per layer.

    Returns
    -------
    torch.nn.Module
        Maps (D, channels, image_size, image_size) to (D, n_outputs).

    Raises
    ------
    InputError
        If a number is out of range.

    References
    ----------
    .. [1] A. Dosovitskiy et al., arXiv:2010.11929, here with the mean over patches in place of a
       token of classes.
    """
    count = as_integer("image_size // patch", image_size // as_integer("patch", patch)) ** 2
    embedding = torch.nn.Conv2d(channels, width, patch, stride=patch)
    return _Transformer(
        torch.nn.Sequential(embedding, torch.nn.Flatten(2), _Swap()),
        count,
        n_outputs,
        width,
        as_integer("depth", depth),
        as_integer("heads", heads),
        causal=False,
    )


def character_model(
    n_characters: int, *, context: int = 16, width: int = 32, depth: int = 2, heads: int = 2
) -> Any:
    """Return a language model of characters: scores of the one that follows a stretch of text.

    Parameters
    ----------
    n_characters : int
        Different characters.
    context : int, optional
        Characters per stretch.
    width, depth, heads : int, optional
        Numbers per character, attention layers, and heads per layer.

    Returns
    -------
    torch.nn.Module
        Maps numbers of characters, (D, context), to scores (D, n_characters).

    Raises
    ------
    InputError
        If a number is out of range.
    """
    n_characters = as_integer("n_characters", n_characters)
    return _Transformer(
        torch.nn.Embedding(n_characters, width),
        as_integer("context", context),
        n_characters,
        width,
        as_integer("depth", depth),
        as_integer("heads", heads),
        causal=True,
    )


def _convolution(size: int, following: int, kernel: int, stride: int = 1) -> Any:
    padding = kernel // 2
    return torch.nn.Conv2d(size, following, kernel, stride, padding, bias=False)


def _normal(size: int) -> Any:
    return torch.nn.GroupNorm(_GROUPS, size)


class _Block(torch.nn.Module):  # type: ignore[misc]
    """Two convolutions beside a short cut."""

    def __init__(self, size: int, following: int, stride: int) -> None:
        super().__init__()
        self.path = torch.nn.Sequential(
            _convolution(size, following, 3, stride),
            _normal(following),
            torch.nn.ReLU(),
            _convolution(following, following, 3),
            _normal(following),
        )
        self.short = torch.nn.Sequential()
        if stride > 1 or size != following:
            self.short = torch.nn.Sequential(
                _convolution(size, following, 1, stride), _normal(following)
            )

    def forward(self, x: Any) -> Any:
        return torch.relu(self.path(x) + self.short(x))


class _Swap(torch.nn.Module):  # type: ignore[misc]
    """(D, width, places) to (D, places, width)."""

    def forward(self, x: Any) -> Any:
        return x.transpose(1, 2)


class _Attention(torch.nn.Module):  # type: ignore[misc]
    """Attention and a layer of two, each on normalised inputs, beside short cuts.

    Of linear layers and plain operations, which have forward derivatives and batch over tangents.
    """

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.normal, self.other = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.queries = torch.nn.Linear(width, 3 * width)
        self.joined = torch.nn.Linear(width, width)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(width, 4 * width), torch.nn.GELU(), torch.nn.Linear(4 * width, width)
        )

    def forward(self, x: Any) -> Any:
        points, places, width = x.shape
        split = self.queries(self.normal(x)).reshape(points, places, 3, self.heads, -1)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(-1, -2) / (width / self.heads) ** 0.5
        if self.causal:
            later = torch.ones(places, places, dtype=torch.bool).triu(1)
            scores = scores.masked_fill(later, -torch.inf)
        mixed = (torch.softmax(scores, -1) @ value).transpose(1, 2).reshape(points, places, width)
        x = x + self.joined(mixed)
        return x + self.layers(self.other(x))


class _Transformer(torch.nn.Module):  # type: ignore[misc]
    """Embedding, places, attention layers, and the scores of the last place or of their mean."""

    def __init__(
        self,
        embedding: Any,
        places: int,
        n_outputs: int,
        width: int,
        depth: int,
        heads: int,
        *,
        causal: bool,
    ) -> None:
        super().__init__()
        as_integer("width // heads", 0 if width % heads else width // heads)
        self.causal = causal
        self.embedding = embedding
        self.place = torch.nn.Parameter(0.02 * torch.randn(places, width))
        self.layers = torch.nn.Sequential(
            *(_Attention(width, heads, causal) for _ in range(depth)), torch.nn.LayerNorm(width)
        )
        self.scores = torch.nn.Linear(width, n_outputs)

    def forward(self, x: Any) -> Any:
        states = self.layers(self.embedding(x) + self.place)
        return self.scores(states[:, -1] if self.causal else states.mean(1))
