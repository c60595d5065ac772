"""Accuracy of two guesses."""

from fedvlm.training.metrics import Mean, Metric, mean_of


def measure(outputs):
    """A client's sum and count: both add up over clients, so that no logits have to leave it."""
    if outputs.local is None:
        return None
    guesses = outputs.local.logits.topk(2).indices
    hits = (guesses == outputs.local.labels[:, None]).any(1)
    return Mean(float(hits.sum()), len(hits))


TOP2 = Metric(
    "top2", "Top 2", "share of the client's own test images whose label is among the two best guesses",
    measure=measure, pool=mean_of("top2"), shown={"run": 9, "terminal": 6, "compare": 10},
)  # fmt: skip
