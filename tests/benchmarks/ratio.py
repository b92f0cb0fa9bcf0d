"""A ratio of two handlers that were measured in the same rounds."""

from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Ratio:
    """The median over the rounds, and the smallest and the largest of them."""

    measured: float
    low: float
    high: float

    @classmethod
    def of(cls, ours: list[float], theirs: list[float]) -> "Ratio":
        """Divide round by round: what slows down a whole round affects both figures."""
        # The limit of the cold starts may end the measurement in the middle of a round.
        rounds = [our / their for our, their in zip(ours, theirs, strict=False)]
        return cls(round(median(rounds), 3), round(min(rounds), 3), round(max(rounds), 3))

    def __str__(self) -> str:
        return f"{self.measured:.2f} ({self.low:.2f} to {self.high:.2f})"
