"""Dense CRF inference in torch operations: the native engine's lattice, batched, on any device."""

from __future__ import annotations

import torch

from deeplab.crf.inputs import Grid, check_values
from deeplab.crf.parameters import CRFParameters


class TorchLattice:
    """Permutohedral lattice (Adams, Baek & Davis 2010) of B x N points with d features of unit deviation.

    Images of a batch share one table of vertices, with the image's number in the key to separate them. ValueError if the
    coordinates do not fit 62 bits.
    """

    def __init__(self, features: torch.Tensor, deterministic: bool = False) -> None:
        batch, points, d = features.shape
        flat = features.reshape(-1, d).float()
        corner, rank, weights = _simplices(flat)
        # One mixed-radix integer per vertex; a margin keeps neighbours of the outermost vertices from wrapping.
        margin = 3 * (d + 1)
        low = corner[:, :d].amin(0) - margin
        extent = (corner[:, :d].amax(0) + margin - low + 1).tolist()
        radix = [1]
        for size in extent:
            radix.append(radix[-1] * int(size))
        if radix[-1] * batch >= 2**62:
            raise ValueError(
                "a deviation is too small for the size of the image or the range of the features: "
                "the lattice's coordinates do not fit 62 bits; raise the deviations"
            )
        unit = torch.tensor([*radix[:d], 0], device=flat.device)
        image = torch.arange(batch, device=flat.device).repeat_interleave(points) * radix[-1]
        root = ((corner[:, :d] - low) * unit[:d]).sum(1) + image
        keys = torch.empty(len(flat), d + 1, dtype=torch.int64, device=flat.device)
        # Vertex r is the root plus r everywhere, minus d + 1 at the r coordinates of highest rank.
        for r in range(d + 1):
            subtracted = ((rank > d - r).long() * unit).sum(1) * (d + 1)
            keys[:, r] = root + r * int(unit.sum()) - subtracted
        table, self.ids = torch.unique(keys, return_inverse=True)
        self.weights = weights
        self.vertices = len(table)
        self.gain = 1.0 / (1.0 + 2.0**-d)
        self.neighbours = []
        for j in range(d + 1):
            step = int(unit.sum()) - (d + 1) * int(unit[j])
            self.neighbours.append((_find(table, table - step), _find(table, table + step)))
        self.order: torch.Tensor | None = None
        if deterministic:
            vertex = self.ids.reshape(-1)
            self.order = torch.argsort(vertex, stable=True)
            self.lengths = torch.bincount(vertex, minlength=self.vertices)

    def filter(self, values: torch.Tensor) -> torch.Tensor:
        """Gaussian filter of (B * N) x C float32 values."""
        sums = values.new_zeros(self.vertices + 1, values.shape[1])  # the last row, zero, is that of absent neighbours
        k = self.ids.shape[1]
        if self.order is None:
            for r in range(k):
                sums.index_add_(0, self.ids[:, r], values * self.weights[:, r, None])
        else:
            spread = (values[:, None] * self.weights[:, :, None]).reshape(-1, values.shape[1])
            sums[:-1] = torch.segment_reduce(spread[self.order], "sum", lengths=self.lengths, axis=0, unsafe=True)
        for before, after in self.neighbours:
            blurred = sums[:-1] + 0.5 * (sums[before] + sums[after])
            sums[:-1] = blurred
        out = sums[self.ids[:, 0]] * self.weights[:, 0, None]
        for r in range(1, k):
            out += sums[self.ids[:, r]] * self.weights[:, r, None]
        return out * self.gain


def _simplices(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """N x d -> remainder-0 corners N x (d+1) int64, ranks N x (d+1), barycentric weights N x (d+1)."""
    n, d = features.shape
    index = torch.arange(1, d + 1, device=features.device, dtype=torch.float64)
    scale = ((2.0 / 3.0) ** 0.5 * (d + 1) / (index * (index + 1)).sqrt()).float()
    scaled = features * scale
    suffix = scaled.flip(1).cumsum(1).flip(1)
    elevated = torch.cat([suffix, suffix.new_zeros(n, 1)], 1)
    elevated[:, 1:] -= index.float() * scaled
    down = torch.floor(elevated / (d + 1))
    nearest = down + (elevated - down * (d + 1) > 0.5 * (d + 1)).float()
    offset = elevated - nearest * (d + 1)
    rank = torch.zeros(n, d + 1, dtype=torch.int64, device=features.device)
    for i in range(d + 1):
        for j in range(i + 1, d + 1):
            less = offset[:, i] < offset[:, j]
            rank[:, i] += less
            rank[:, j] += ~less
    rank += nearest.sum(1, keepdim=True).long()
    move = ((rank < 0).long() - (rank > d).long()) * (d + 1)
    rank += move
    corner = nearest.long() * (d + 1) + move
    offset = (offset - move) / (d + 1)
    by_rank = torch.zeros_like(offset).scatter_(1, d - rank, offset)  # column r: coordinate of rank d - r
    weights = torch.empty_like(by_rank)
    weights[:, 1:] = by_rank[:, 1:] - by_rank[:, :-1]
    weights[:, 0] = 1 + by_rank[:, 0] - by_rank[:, -1]
    return corner, rank, weights


def _find(table: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Indices of keys in a sorted table; len(table) for absent keys."""
    index = torch.searchsorted(table, keys).clamp(max=len(table) - 1)
    return torch.where(table[index] == keys, index, len(table))


def upsampled_on(grid: Grid, height: int, width: int, device: torch.device) -> torch.Tensor:
    """`deeplab.crf.inputs.upsampled`, computed on `device`, so that only the grid's few values are copied there."""
    values = torch.from_numpy(check_values(grid)).to(device)
    if not grid.full_size:
        for side, pixels, axis in ((1, height, grid.placement.rows), (2, width, grid.placement.columns)):
            low, weight = (torch.from_numpy(array).to(device) for array in axis.places(pixels))
            before, after = values.index_select(side, low), values.index_select(side, (low + 1).clamp(max=axis.count - 1))
            values = torch.lerp(before, after, weight.float()[:, None] if side == 1 else weight.float())
    return values.clamp(min=1e-5).log() if grid.probabilities else values


class _Kernel:
    """One normalised, weighted kernel."""

    def __init__(self, features: torch.Tensor, weight: float, normalization: str, deterministic: bool) -> None:
        self.lattice = TorchLattice(features, deterministic)
        ones = self.lattice.filter(torch.ones(features.shape[0] * features.shape[1], 1, device=features.device))
        unit = torch.ones_like(ones)
        self.before, self.after = unit, unit * weight
        if normalization == "symmetric":
            root = (ones + 1e-20).rsqrt()
            self.before, self.after = root, root * weight
        elif normalization == "before":
            self.before = 1 / (ones + 1e-20)
        elif normalization == "after":
            self.after = weight / (ones + 1e-20)

    def message(self, marginals: torch.Tensor) -> torch.Tensor:
        return self.lattice.filter(marginals * self.before) * self.after


def mean_field(
    images: torch.Tensor, logits: torch.Tensor, parameters: CRFParameters, deterministic: bool = False
) -> tuple[torch.Tensor, dict[str, int]]:
    """Mean-field inference (Krahenbuhl & Koltun 2011, algorithm 1) on a batch of images of one size.

    images: B x H x W x 3 uint8 RGB. logits: B x C x H x W float. Both on one device. Returns the marginals,
    B x C x H x W float32, and the lattices' vertex counts. deterministic: sum in a fixed order on a GPU, too.
    ValueError for other shapes or dtypes, and for deviations that are too small for the image.
    """
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != torch.uint8:
        raise ValueError(f"images of shape {tuple(images.shape)}, {images.dtype}: B x H x W x 3 uint8 is accepted")
    batch, height, width, _ = images.shape
    if logits.ndim != 4 or logits.shape[0] != batch or logits.shape[2:] != (height, width):
        raise ValueError(f"logits of shape {tuple(logits.shape)}: {batch} x C x {height} x {width} is accepted")
    device = images.device
    y, x = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    place = torch.stack([x, y], -1).reshape(1, -1, 2).float()
    kernels, vertices = [], {}
    with torch.inference_mode():
        if parameters.pos_w:
            # All images have the same positions, but a shared lattice would mix their values.
            features = (place / torch.tensor(parameters.pos_xy, device=device)).expand(batch, -1, -1)
            kernels.append(_Kernel(features, parameters.pos_w, parameters.normalization, deterministic))
            vertices["gaussian_vertices"] = kernels[-1].lattice.vertices
        if parameters.bi_w:
            colours = images.reshape(batch, -1, 3).float() / torch.tensor(parameters.bi_rgb, device=device)
            positions = (place / torch.tensor(parameters.bi_xy, device=device)).expand(batch, -1, -1)
            kernels.append(_Kernel(torch.cat([positions, colours], -1), parameters.bi_w, parameters.normalization, deterministic))
            vertices["bilateral_vertices"] = kernels[-1].lattice.vertices
        unary = logits.float().permute(0, 2, 3, 1).reshape(batch * height * width, -1)
        unary = unary - unary.amax(1, keepdim=True)
        marginals = unary.softmax(1)
        for _ in range(parameters.iterations):
            total = unary.clone()
            for kernel in kernels:
                total += kernel.message(marginals)
            marginals = total.softmax(1)
    return marginals.reshape(batch, height, width, -1).permute(0, 3, 1, 2).contiguous(), vertices
