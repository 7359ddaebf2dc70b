"""A slow oracle for average precision."""


def naive_scores(ranking, positives, junk, ks=(1, 5, 10)):
    """AP and P@k of one ranking, walking down it photo by photo."""
    positives, junk = set(positives), set(junk)
    ranking = [row for row in ranking if row not in junk]
    area, found, precision_before, last = 0.0, 0, 1.0, 0
    hits = [row in positives for row in ranking]
    for place, hit in enumerate(hits, 1):
        found += hit
        if hit:
            area += (precision_before + found / place) / 2 / len(positives)
            last = place
        # The trapezoid of the next hit begins at the precision just before it.
        precision_before = found / place
    return area, [sum(hits[: min(k, last)]) / min(k, last) for k in ks]
