"""Online error control: one stated error for all tests of a name, however many follow.

The method is e-LOND (Xu & Ramdas, "Online multiple testing with e-values", AISTATS 2024). A test
that is won when its stake reaches 1/level is a test by an e-value. The t-th test has the level

    error * gamma(t) * (discoveries before + 1),   gamma(t) = 1 / (t (t + 1)),

and the gammas sum to 1. Then, at every time, the expected share of wrong discoveries among all
discoveries is at most `error`, also where the tests share their data. While every discovery would
be wrong, that is the probability of even one.
"""

from pydantic import BaseModel


class OnlineError(BaseModel):
    """The tests of one kind that were begun and won.

    Attributes:
        tests: how many were begun; the last of them may be under way.
        discoveries: how many were won.
    """

    tests: int = 0
    discoveries: int = 0

    def begin(self, error: float) -> float:
        """Begin a test; return its level, in (0, 1).

        Args:
            error: of all tests together, in (0, 1).
        """
        self.tests += 1
        return error * (self.discoveries + 1) / (self.tests * (self.tests + 1))

    def win(self) -> None:
        """Note that the test under way was won."""
        self.discoveries += 1
