"""Tokens coloured by reward, in a terminal."""

from __future__ import annotations

from rich.text import Text

from densepath.client.results import Score

#: The reward in nats at which a token has its full colour. Blue is for tokens that are more likely under the
#: SFT than under the reference, orange for the others. Colour-blind readers can distinguish these two hues.
FULL_AT = 2.0
POSITIVE, NEGATIVE = (33, 102, 172), (230, 97, 1)


def reward_text(score: Score, *, numbers: bool = False) -> Text:
    """One line: the item's index, its id and its sum, and then its tokens, each on the colour of its reward.

    With `numbers`, each token is followed by its reward.
    """
    head = f"{score.index}" if score.id is None else f"{score.index} {score.id}"
    if score.error is not None:
        return Text(f"{head}  {score.error.code}: {score.error.message}", style="red")
    text = Text(f"{head}  sum {score.sum:+.3f}  ", style="dim", end="\n")
    for token, reward in zip(
        score.tokens or (), score.reward_T if score.reward_T is not None else (), strict=True
    ):
        text.append(token.replace("\n", "⏎") or "∅", style=_style(float(reward)))
        if numbers:
            text.append(f" {reward:+.2f}  ")
    return text


def _style(reward: float) -> str:
    """The colour of a reward: from white at 0 to the full colour at FULL_AT."""
    share = min(abs(reward) / FULL_AT, 1.0)
    hue = POSITIVE if reward > 0 else NEGATIVE
    red, green, blue = (round(255 + (channel - 255) * share) for channel in hue)
    return f"{'white' if share > 0.6 else 'black'} on #{red:02x}{green:02x}{blue:02x}"
