"""A base model of a few thousand random weights, with a tokenizer that knows a few dozen words."""

from __future__ import annotations

from pathlib import Path

# A label's own words, a label's own words, ..., and last the words that stand in every text.
WORDS = (
    ("rain", "cloud", "storm", "wind", "snow"),
    ("bread", "cheese", "apple", "soup", "rice"),
    ("train", "bus", "ferry", "tram", "bicycle"),
    ("the", "a", "this", "that", "one", "some", "my", "your"),
)
MAX_TOKENS = 32


def save_tokenizer(folder: Path, begin: tuple[str, str] = ("[PAD]", "[UNK]"), more: int = 0, **special: str) -> int:
    """Write a tokenizer of whole words, without a maximum length; return how many tokens it has.

    begin: its first two tokens; more: how many words it has that nobody uses; special: further special tokens.
    """
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = [*begin, "[CLS]", "[SEP]", *(word for words in WORDS for word in words)]
    words += [f"more{number}" for number in range(more)]
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        **special,
    ).save_pretrained(folder)
    return len(words)


def build_tiny_model(folder: Path) -> Path:
    """Write the model into the folder, as save_pretrained would, and return the folder."""
    import torch
    import transformers

    n_words = save_tokenizer(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=n_words,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=MAX_TOKENS,
    )
    transformers.BertModel(config).save_pretrained(folder)
    return folder
