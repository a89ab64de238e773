"""What the estimates say about H1."""

from __future__ import annotations

from rankscope.analysis.growth import EVERY, PUBLISHED, SLOW, Growth
from rankscope.analysis.verdicts.verdict import (
    ERROR_RATE,
    MOST_NAMED,
    Verdict,
    about_seeds,
    answer,
    counted,
    entries,
    interval_of,
    named,
    records,
    where,
)


def growth_verdict(found: Growth) -> Verdict:
    """Supported: b lies below one half with its whole interval, and in no group above it
    (Holm-adjusted).

    Contradicted: b lies above, and in no group below.
    """
    b, main = found.exponent, found.primary
    numbers = entries("ratio", found.ratio) | entries("b", b)
    numbers |= {"published_low": PUBLISHED[0], "published_high": PUBLISHED[1]}
    numbers |= {"groups": records(found.groups), "left_out": found.left_out}
    if main.empty:
        reason = (
            "No task has a configuration that learnt at two ranks of 2 or more that all "
            "of its seeds share."
        )
        return answer("H1", "undecided", [reason], numbers, _left_out(found))
    side = "above" if b.high < SLOW else "below"
    others = _shown_to_lie(side, found)
    word, why = "undecided", ""
    if not b.known:
        why = "With one layer and one seed there is no interval."
    elif b.low <= SLOW <= b.high:
        why = f"The interval of b holds values on both sides of {SLOW}."
    elif others:
        places = named(others) if len(others) <= MOST_NAMED else f"{others[0]} and elsewhere"
        why = f"On {places} b lies {side} {SLOW}: there is no common answer."
    else:
        word = "supported" if b.high < SLOW else "contradicted"
    return answer(
        "H1",
        word,
        [_headline(found), *_more(found), why],
        numbers,
        about_seeds(b),
        _left_out(found),
    )


def _headline(found: Growth) -> str:
    main = found.primary
    ranks = main["ranks"].iloc[0].split(", ")
    grown = float(ranks[-1]) / float(ranks[0])
    several = _several_models(found)
    names = named(where(row, several) for row in records(main))
    place = f"{names}, scale {main['scaling'].iloc[0]}"
    once = "" if found.ratio.cluster == "seed" else " of one seed"
    return (
        f"From r = {ranks[0]} to r = {ranks[-1]}, {grown:.3g} times the rank, the stable rank of "
        f"the update changes by a factor of {found.ratio}, b = {found.exponent} ({place}, "
        f"{counted(found.ratio.clusters, found.ratio.cluster)}{once})."
    )


def _shown_to_lie(side: str, found: Growth) -> list[str]:
    """Where b lies above or below one half; a kind of layer only where not all together do."""
    b = found.groups["b"]
    there = b.gt(SLOW) if side == "above" else b.lt(SLOW)
    rows = found.groups[there & found.groups["p_holm"].le(ERROR_RATE)]
    told = [
        f"{where(row, _several_models(found))}, {row['scaling']}"
        + ("" if row["kind"] == EVERY else f", {row['kind']}")
        for row in records(rows)
    ]
    return [place for place in told if not any(place.startswith(f"{whole}, ") for whole in told)]


def _several_models(found: Growth) -> bool:
    return bool(found.groups["model"].nunique() > 1)


def _more(found: Growth) -> list[str]:
    main = found.primary
    sentences = [
        f"Ranks {main['ranks'].iloc[0]}: at least eight in ten of these updates have a stable rank "
        f"between {main['p10'].min():.2f} and {main['p90'].max():.2f}; "
        f"at the largest rank they use {100 * main['utilisation_at_highest'].median():.1f} % "
        "of the nominal rank."
    ]
    low, high = PUBLISHED
    b = found.exponent
    if b.known:
        place = "inside" if b.low >= low and b.high <= high else "across"
        place = "below" if b.high < low else "above" if b.low > high else place
        sentences.append(
            f"That is {place} the range published for three language models, {low:.2f} to "
            f"{high:.2f}."
        )
    others = found.groups[~found.groups["primary"] & found.groups["kind"].eq(EVERY)]
    told = [
        f"{where(row, _several_models(found))}, {row['scaling']}, ranks {row['ranks']}: "
        f"b = {interval_of(row, 'b')}"
        for row in records(others)[:6]
    ]
    if told:
        kinds = "Designs with other seeds or ranks"
        if _several_models(found):
            kinds = "Other models, settings and designs"
        sentences.append(f"{kinds} are not pooled with it: {'; '.join(told)}.")
    return sentences


def _left_out(found: Growth) -> str:
    if not found.left_out:
        return ""
    return (
        "Left out, because nothing was learnt or no two ranks are common to all seeds: "
        f"{'; '.join(found.left_out)}."
    )
