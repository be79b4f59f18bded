"""A straight line through measurements, of which the latest count most. Pure."""

from dataclasses import dataclass

# How much the latest measurement counts.
_SMOOTHING = 0.2
# The variance of what was measured, over its mean square, from which on it tells of the slope.
_LEAST_SPREAD = 1e-3


@dataclass(frozen=True)
class FittedLine:
    """``base + slope * x``, neither below zero: what something costs beside what each more of it costs."""

    base: float
    slope: float
    # Weighted means of x, y, xx and xy, of which the line is fitted.
    weight: float = 0.0
    mean_x: float = 0.0
    mean_y: float = 0.0
    mean_xx: float = 0.0
    mean_xy: float = 0.0

    def at(self, x: float) -> float:
        """Return y."""
        return self.base + self.slope * x

    def measured(self, x: float, y: float) -> "FittedLine":
        """Return the line with a measurement taken into account."""
        share = 1.0 if self.weight == 0 else _SMOOTHING
        mean_x, mean_y = self.mean_x + share * (x - self.mean_x), self.mean_y + share * (y - self.mean_y)
        mean_xx = self.mean_xx + share * (x * x - self.mean_xx)
        mean_xy = self.mean_xy + share * (x * y - self.mean_xy)
        variance = mean_xx - mean_x * mean_x
        # All of nearly one x say nothing of the slope: then only the base follows.
        tells = variance > _LEAST_SPREAD * mean_xx
        slope = max(0.0, (mean_xy - mean_x * mean_y) / variance) if tells else self.slope
        base = max(0.0, mean_y - slope * mean_x)
        return FittedLine(base, slope, self.weight + 1, mean_x, mean_y, mean_xx, mean_xy)
