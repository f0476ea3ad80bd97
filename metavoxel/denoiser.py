"""The network as a denoiser: raw outputs -> clean predictions. How it is parameterised is this module's secret.

Images: x_0 = what a normal law of whole images given the facts says (see `image_law`) + c_out F, with c_out the sd that an
entry by itself leaves open (EDM's preconditioning, Karras et al. 2022, about a mean). So the network starts from brains of
the sizes and shapes that such people have. At t = 1 the prediction is mean + sd F, at t = 0 the value itself. F is told
what the law expects (see `image_law.Expected`), and nothing unknown is expected below all that training knew. Last comes
what was found of people not trained on (see `recalibration`).
Scalars: see `scalars`.
"""

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor, nn

from metavoxel.clocks import once
from metavoxel.diffusion import weighed
from metavoxel.facts import fact_width, side_by_side, told
from metavoxel.image_law import FEATURES, ImageLaw
from metavoxel.nets.joint import JointNet, NetSettings, Scan
from metavoxel.nets.paper import PaperSettings
from metavoxel.nets.tokens import TokenSpec
from metavoxel.paper import PaperDenoiser
from metavoxel.processes import Discrete
from metavoxel.question import Coverage, ScalarLaws
from metavoxel.recalibration import Recalibration
from metavoxel.scalars import beside_facts, clean, law, loss, tempered
from metavoxel.schema import Scalar, Schema, State, Times, Variable

MOST_KINDS = 1 << 62
"""Combinations of classes that a whole number tells apart."""


class JointDenoiser(nn.Module):
    """(State, Times) -> clean predictions for a fitted schema.

    Scalars may come with several rows for each row of the images; images are then decoded from the first of them.
    """

    sureness: Tensor
    """(scalars,): how much of what it says of each a whole scan is believed; see `scalars.sureness`."""
    share: Tensor
    """(scalars,): how much of what a whole scan adds to other facts is believed; see `scalars.beside_facts`."""
    later = ("share",)
    """Buffers that older files lack, see `checkpoint.load_weights`: of these, a scan is believed in full."""

    def __init__(self, schema: Schema, settings: NetSettings, coverage: Coverage) -> None:
        super().__init__()
        self.schema, self.coverage = schema, coverage
        dims = len(schema.images[0].shape) if schema.images else 3
        images = {image.name: image.fitted.channels for image in schema.images}
        self.net = JointNet(settings, dims, images, [_token(v) for v in schema.scalars], FEATURES)
        facts = sum(fact_width(v) for v in schema.scalars)
        self.laws = nn.ModuleDict({image.name: ImageLaw(image.entry_shape, facts, image.fitted.factors,
                                                        image.fitted.neighbours) for image in schema.images})  # fmt: skip
        self.recalibrations = nn.ModuleDict({name: Recalibration(channels, facts) for name, channels in images.items()})
        for name in ("sureness", "share"):
            self.register_buffer(name, torch.ones(len(schema.scalars)))

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def law(self, name: str) -> ImageLaw:
        """Of the image of that name."""
        law = self.laws[name]
        assert isinstance(law, ImageLaw)
        return law

    def recalibration(self, name: str) -> Recalibration:
        """Of the image of that name."""
        recalibration = self.recalibrations[name]
        assert isinstance(recalibration, Recalibration)
        return recalibration

    def forget_held_out(self) -> None:
        """As it was trained: without what people not trained on had said of it."""
        self.sureness.fill_(1.0)
        self.share.fill_(1.0)
        for image in self.schema.images:
            self.recalibration(image.name).shift.zero_()

    def forward(self, state: State, times: Times) -> State:
        raw, images = self._evaluate(state, times)
        return {**self.clean_scalars(raw, state, times), **images}

    def tell(self, state: State, times: Times) -> ScalarLaws:
        """p(x_0 | state) of every number, log p(x_0 | state) of every class. Nothing is decoded."""
        return self.freeze(state, times).tell(state, times)

    def judge(self, state: State, times: Times, x0: State) -> State:
        """The loss of every entry, 1 for a predictor that knows only the marginal: of images by squared error, of scalars
        by log p(x_0)."""
        raw, images = self._evaluate(state, times)
        return {**self.judge_scalars(raw, state, times, x0), **weighed(images, self.schema.images, times, x0)}

    def _evaluate(self, state: State, times: Times) -> tuple[State, State]:
        """Raw outputs for the scalars, clean images."""
        scan = self._encode(state, times)
        tokens = self._attend(state, times, scan)
        raw = self.read(tokens, state, times, FrozenScan(self, scan))
        if scan is None:
            return raw, {}
        return raw, self._images(scan, tokens.unflatten(0, (len(scan.features.embedding), -1))[:, 0], state, times)

    def read(self, tokens: Tensor, state: State, times: Times, frozen: "FrozenScan") -> State:
        """Raw outputs for the scalars, as sure as they may be. Of whom nothing else is told, the law over people is the
        answer: the network, which is rarely asked so, has nothing to add."""
        raw, scalars, scan = self.net.tokens.read(tokens), self.schema.scalars, frozen.scan
        if not scalars:
            return raw
        seen = shown(scan, len(tokens), self.device)
        told = torch.stack([times[v.name] < 1 for v in scalars])
        others = told.sum(0) - told.long() > 0
        factors = self.sureness[:, None] ** seen * (others if scan is None else others | (seen > 0))
        raw = {v.name: tempered(v, raw[v.name], factor) for v, factor in zip(scalars, factors)}
        asked = torch.stack([times[v.name] > 0 for v in scalars])
        doubted = asked & others & (seen > 0) & (self.share != 1)[:, None]
        if scan is None or not bool(doubted.any()):
            return raw
        without = frozen.unseen(state, times)
        shares = torch.where(others, self.share[:, None] ** seen, 1.0)
        return {v.name: beside_facts(v, raw[v.name], without[v.name], share) for v, share in zip(scalars, shares)}

    def blank(self) -> Scan:
        """One row of whose images nothing is seen."""
        grids = {image.name: (1, 2 * image.fitted.channels, *image.fitted.grid) for image in self.schema.images}
        nothing = {name: torch.zeros(grid, device=self.device) for name, grid in grids.items()}
        return self.net.encode(nothing, {name: torch.ones_like(x[:, :1]) for name, x in nothing.items()})

    def law_of_scalars(self, raw: State, state: State, times: Times) -> ScalarLaws:
        """Raw outputs -> what is believed of every scalar."""
        return {v.name: law(v, raw[v.name], x, tau) for v, x, tau in self._noised(state, times)}

    def clean_scalars(self, raw: State, state: State, times: Times) -> State:
        """Raw outputs -> clean predictions."""
        return {v.name: clean(v, raw[v.name], x, tau) for v, x, tau in self._noised(state, times)}

    def judge_scalars(self, raw: State, state: State, times: Times, x0: State) -> State:
        """Raw outputs -> the loss of every scalar asked for."""
        asked = (part for part in self._noised(state, times) if times[part[0].name].any())
        return {v.name: loss(v, raw[v.name], x, tau, x0[v.name]) for v, x, tau in asked}

    def _noised(self, state: State, times: Times) -> Iterator[tuple[Scalar, Tensor, Tensor]]:
        """Every scalar's noised values and their levels."""
        for v in self.schema.scalars:
            yield v, state[v.name], v.clock.tau(times[v.name])

    def _images(self, scan: Scan, tokens: Tensor, state: State, times: Times) -> State:
        """Clean images; rows whose images are all known stay as they are: there is nothing to predict."""
        images = self.schema.images
        clean = {image.name: state[image.name] for image in images}
        asked = torch.stack([times[image.name].flatten(1).amax(1) > 0 for image in images]).any(0)
        if not asked.any():
            return clean
        facts = told(self.schema.scalars, state, times, len(asked))
        if not asked.all():
            rows = asked.nonzero()[:, 0]
            scan, tokens, facts = scan.rows(rows), tokens[rows], [fact.rows(rows) for fact in facts]
            state, times = ({v.name: part[v.name][rows] for v in images} for part in (state, times))
        taus = {image.name: image.clock.tau(once(times[image.name])) for image in images}
        with torch.autocast(self.device.type, enabled=False):
            expected = {name: self.law(name).given(facts).expect(state[name], tau) for name, tau in taus.items()}
        raw = self.net.finish(self.net.decode(scan, tokens), [image.features() for image in expected.values()])
        means = side_by_side(facts, len(tokens), self.device)
        found = {name: image.within(self.recalibration(name)(image.corrected(raw[name]), taus[name], means))
                 for name, image in expected.items()}  # fmt: skip
        return found if asked.all() else {name: clean[name].index_copy(0, rows, x) for name, x in found.items()}

    def freeze(self, images: State, times: Times) -> "FrozenScan":
        """The denoiser of the scalars for these images (rows, ...), whose features are computed here, once."""
        return FrozenScan(self, self._encode(images, times))

    def _encode(self, state: State, times: Times) -> Scan | None:
        """People differ by a few per cent of an image's contrast; shown as deviations, that is what is seen first."""
        if not self.schema.images:
            return None
        seen = {}
        for image in self.schema.images:
            x, t = state[image.name], times[image.name]
            tau = image.clock.tau(once(t) if t.any() else t.new_zeros((1,) * t.dim()))  # a map of zeros is work for nothing
            seen[image.name] = torch.cat([x, self.law(image.name).alone().deviation(x, tau)], 1)
        return self.net.encode(seen, times)

    def _attend(self, state: State, times: Times, scan: Scan | None, *, only_asked: bool = False) -> Tensor:
        names = [v.name for v in self.schema.scalars]
        return self.net.attend({k: state[k] for k in names}, {k: times[k] for k in names}, scan, only_asked=only_asked)


class FrozenScan:
    """A denoiser of the scalars given scans that stay as they are. Asks for rows * draws answers at a time."""

    def __init__(self, denoiser: JointDenoiser, scan: Scan | None) -> None:
        self.denoiser, self.scan = denoiser, scan
        self.scans = 1 if scan is None else len(scan.shown)
        self.coverage = denoiser.coverage
        self.device = denoiser.device

    def __call__(self, state: State, times: Times) -> State:
        return self.denoiser.clean_scalars(self.raw(state, times), state, times)

    def tell(self, state: State, times: Times) -> ScalarLaws:
        """p(x_0 | state) of every number, log p(x_0 | state) of every class."""
        return self.denoiser.law_of_scalars(self.raw(state, times), state, times)

    def judge(self, state: State, times: Times, x0: State) -> State:
        """The loss of every scalar."""
        return self.denoiser.judge_scalars(self.raw(state, times), state, times, x0)

    def raw(self, state: State, times: Times) -> State:
        """Raw outputs, see `scalars`; of what is known in all rows they mean nothing. What many draws ask alike is asked
        once: absent values are noise, and unseen."""
        alike = self._alike(state, times)
        if alike is None:
            return self._raw(state, times)
        first, which = alike
        names = [v.name for v in self.denoiser.schema.scalars]
        once = ({name: part[name][first].repeat(self.scans) for name in names} for part in (state, times))
        scan = torch.arange(self.scans, device=which.device).repeat_interleave(len(which) // self.scans)
        return {name: x[scan * len(first) + which] for name, x in self._raw(*once).items()}

    def _raw(self, state: State, times: Times) -> State:
        tokens = self.denoiser._attend(state, times, self.scan, only_asked=True)
        return self.denoiser.read(tokens, state, times, self)

    def unseen(self, state: State, times: Times) -> State:
        """Raw outputs had these scans not been seen."""
        return self.denoiser.net.tokens.read(self.denoiser._attend(state, times, self._blank, only_asked=True))

    @cached_property
    def _blank(self) -> Scan:
        return self.denoiser.blank()

    def _alike(self, state: State, times: Times) -> tuple[Tensor, Tensor] | None:
        """A row of each kind of question, and which of these every row asks, whatever its scan; None where there are many
        kinds, as where every draw has a number of its own."""
        kind, possible = torch.zeros(1, dtype=torch.int64, device=self.device), 1
        for v in self.denoiser.schema.scalars:
            x, t = state[v.name], times[v.name]
            if not bool((t == t[:1]).all()):
                return None
            if bool(t[0] == 1):
                continue
            if isinstance(v.process, Discrete):
                kind, possible = kind * v.process.states + x, possible * v.process.states
            elif not bool((x == x[:1]).all()):
                return None
        if not times or possible > MOST_KINDS:
            return None
        rows = len(next(iter(times.values())))
        kinds, which = kind.expand(rows).unique(return_inverse=True)
        if 2 * len(kinds) > rows // self.scans:
            return None
        row = torch.arange(rows, device=which.device)
        return row.new_full((len(kinds),), rows).scatter_reduce(0, which, row, "amin"), which

    def freeze(self, images: State, times: Times) -> "FrozenScan":
        return self


LearnedDenoiser = JointDenoiser | PaperDenoiser


def make_denoiser(schema: Schema, settings: NetSettings | PaperSettings, coverage: Coverage) -> LearnedDenoiser:
    """An untrained denoiser of the architecture whose settings these are."""
    if isinstance(settings, PaperSettings):
        return PaperDenoiser(schema, settings, coverage)
    return JointDenoiser(schema, settings, coverage)


def shown(scan: Scan | None, n: int, device: torch.device) -> Tensor:
    """(n,), several for each row of the scan: how much of what scalars are told from was seen of images; all of it where
    there are none."""
    return torch.ones(n, device=device) if scan is None else scan.shown.repeat_interleave(n // len(scan.shown))


def _token(v: Variable) -> TokenSpec:
    if isinstance(v.process, Discrete):
        return TokenSpec(v.name, v.process.states, v.process.levels)
    return TokenSpec(v.name)
