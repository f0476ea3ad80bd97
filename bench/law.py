"""What the law of images says of fresh phantoms before the network speaks, with and without what neighbours share, and what
the packaged network adds to it.

    python bench/law.py [-n 96]

Mean squared errors of the clean scan in its own variance, age and sex given: of scans noised to a level everywhere, and of
halves of which the other half is known.
"""

from collections.abc import Callable

import torch
from common import asked, clock, record
from images import scans
from torch import Tensor

import metavoxel as mv
from metavoxel.clocks import alpha, sigma
from metavoxel.data import phantom
from metavoxel.facts import facts_of, told
from metavoxel.image_law import ImageLaw
from metavoxel.schema import State, Times, full_level

PEOPLE, PEOPLE_SEED, ASKED_SEED = 1500, 77_009, 77_007
LEVELS = (0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9)
Guess = Callable[[State, Times], Tensor]


def phantoms(model: mv.MetaVoxel, n: int, seed: int) -> tuple[Tensor, State, Times]:
    """Of n people: their scans' entries; facts and levels of these, all known."""
    image, people = model.first_image(), phantom.subjects(n, seed)
    x = model.codecs[image.name].encode(torch.from_numpy(scans(people, seed, image)))
    values = {v.name: v.encode(people[v.name])[0] for v in model.schema.scalars}
    return x, values, {name: torch.zeros(n) for name in values}


@torch.no_grad()
def main() -> None:
    model, n = asked(96)
    image, scalars, figures = model.first_image(), model.schema.scalars, {}
    x, values, known = phantoms(model, n, ASKED_SEED)
    training, own_values, own_known = phantoms(model, PEOPLE, PEOPLE_SEED)
    facts = facts_of(scalars, own_values, own_known, PEOPLE)
    eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))

    def by(law: ImageLaw) -> Guess:
        def clean(state: State, times: Times) -> Tensor:
            who = law.given(told(scalars, state, times, n))
            return who.expect(state[image.name], image.clock.tau(times[image.name])).mean

        return clean

    guesses: dict[str, Guess] = {}
    for name, neighbours in (("whole_image_only", 0), ("with_neighbours", image.fitted.neighbours)):
        law = ImageLaw(image.entry_shape, facts.shape[1], image.fitted.factors, neighbours)
        with clock(figures, f"seconds_to_fit_{name}"):
            law.fit(lambda rows: training[rows], torch.arange(PEOPLE), facts)
        guesses[name] = by(law)
    guesses["packaged_network"] = lambda state, times: model.denoiser(state, times)[image.name]
    half = full_level(image, 0.0, n).clone()
    half[:, :, : half.shape[2] // 2] = 1.0
    levels = {f"at_{t}": full_level(image, t, n) for t in LEVELS} | {"of_left_halves": half}
    for where, t in levels.items():
        tau = image.clock.tau(t)
        noised = alpha(tau) * x + sigma(tau) * eps
        for name, guess in guesses.items():
            found = guess({**values, image.name: noised}, {**known, image.name: t})
            figures[f"error_{where}_{name}"] = float(((found - x) ** 2)[(t > 0).expand_as(x)].mean())
    record("law", f"laws of {PEOPLE} phantoms, {n} fresh ones asked about", figures)


if __name__ == "__main__":
    main()
