"""Small WordPiece tokenizers and what Hugging Face tokenizers makes of texts with them.

    pip install tokenizers
    python wordpiece_vectors.py ../resources/io/fletch/runtime/tokenizer/wordpiece

Writes a folder per tokenizer: tokenizer.json and vectors.json, a list of {text, ids, plain}: with and without special tokens.
"""
import json, os, random, sys, unicodedata
import tokenizers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = """The quick brown fox jumps over the lazy dog. A sentence embedding is a vector; vectors of similar sentences point the same way.
Pack my box with five dozen liquor jugs! How razorback-jumping frogs can level six piqued gymnasts? It's 12:30, the 3rd of May 2026.
Ein naïver Öltanker fährt über die Straße, während der Käpt'n schläft. Les élèves préfèrent l'été à l'hiver; où êtes-vous né?
El pingüino Wenceslao hizo kilómetros bajo exhaustiva lluvia. Příliš žluťoučký kůň úpěl ďábelské ódy. Zażółć gęślą jaźń.
Съешь же ещё этих мягких французских булок, да выпей чаю. Ξεσκεπάζω την ψυχοφθόρα βδελυγμία. ΟΔΟΣ οδός.
人工智能 改变 世界。機械学習は楽しいです。ひらがな カタカナ 한국어 문장 임베딩. नमस्ते दुनिया। สวัสดีชาวโลก. שלום עולם. مرحبا بالعالم.
unaffable unbelievable embeddings embedded tokenization tokenizers retrieval retrieve retrieving search query document documents
public static void main(String[] args) { System.out.println("hello, world"); } x_1 = a*b + c/d - e%f; https://example.org/path?q=1&r=2#top
The THE the Fox FOX fox Berlin berlin Paris paris NASA nasa""".splitlines()

TEXTS = [
    "", " ", "hello, world", "The quick brown fox jumps over the lazy dog.", "Unaffable", "unaffableness!!", "a" * 100, "a" * 101, "x" * 300,
    "don't it's we're", "  leading and trailing  ", "tabs\tand\nlines\r\nhere", "naïve Öltanker Straße ÉLÈVES", "e\u0301 = \u00e9, A\u030A",
    "ΟΔΟΣ ΟΔΟΣ. Σ", "İstanbul I\u0307", "人工智能改变世界。", "ab人cd", "カタカナ ひらがな 한국어", "ｆｕｌｌｗｉｄｔｈ", "\u200bzero\u200bwidth\ufeff", "a\u00adb", "a\u0000b\ufffdc",
    "nbsp\u00a0here\u3000there\u2003em", "[CLS] hello [SEP] world [MASK]", "[cls] [UNK][PAD] [mask", "[unused1] [hello]", "##ing ing ##", "emoji 🚀🎉 👩‍👩‍👧 flag 🇩🇪",
    "नमस्ते दुनिया", "สวัสดีชาวโลก", "שָׁלוֹם עוֹלָם", "مَرْحَبًا بالعالم", "\u2581underlined\u2581 space", "x_1 = a*b + c/d - e%f;", "…—–‘’“”«»¿¡", "$€£¥+<>=|~^`",
    "https://example.org/path?q=1&r=2#top", "１２３ 4.5e-6 ½ Ⅷ", "ﬁ ﬂ ﬃ", "Ǆ ǅ ǆ", "\U00020000\U0002a6dfx", "a\u2028b\u2029c\u0085d", "query: what is a vector?",
]


def agrees(c):
    """Whether the library, whose tables are old, classifies a character as Unicode does today."""
    category = unicodedata.category(c)
    if category in ("Cn", "Cs", "Co"):
        return False
    pieces = pre_tokenizers.BertPreTokenizer().pre_tokenize_str("a" + c + "b")
    punctuation = category.startswith("P") or (ord(c) < 128 and 32 < ord(c) < 127 and not c.isalnum())
    cleaned = normalizers.BertNormalizer(clean_text=True, handle_chinese_chars=False, strip_accents=False, lowercase=False).normalize_str(c)
    marked = normalizers.BertNormalizer(clean_text=False, handle_chinese_chars=False, strip_accents=True, lowercase=False).normalize_str(c)
    return (len(pieces) == 3) == punctuation and (cleaned == "") == (category in ("Cc", "Cf") and c not in "\t\n\r" or c == "\ufffd") and (
        (marked == "") == (category == "Mn"))


def build(lowercase):
    t = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
    t.normalizer = normalizers.BertNormalizer(clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=lowercase)
    t.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    t.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=560, special_tokens=special, show_progress=False))
    t.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[(s, t.token_to_id(s)) for s in ("[CLS]", "[SEP]")])
    t.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return t


if __name__ == "__main__":
    for name, lowercase in (("uncased", True), ("cased", False)):
        out = os.path.join(sys.argv[1], name)
        os.makedirs(out, exist_ok=True)
        t = build(lowercase)
        t.save(os.path.join(out, "tokenizer.json"), pretty=False)
        r = random.Random(7)
        known = [chr(c) for c in range(0x3400) if agrees(chr(c))] + [chr(c) for c in range(0x1F300, 0x1F600) if agrees(chr(c))]
        texts = list(TEXTS)
        for _ in range(150):
            words = r.choices("".join(CORPUS).split(), k=r.randint(1, 6))
            texts.append("".join(w[: r.randint(1, 9)] + "".join(r.choices(known, k=r.randint(0, 3))) for w in words))
        vectors = [dict(text=x, ids=t.encode(x).ids, plain=t.encode(x, add_special_tokens=False).ids) for x in texts]
        with open(os.path.join(out, "vectors.json"), "w") as f:
            f.write("[\n" + ",\n".join(json.dumps(v) for v in vectors) + "\n]\n")
        print(name, t.get_vocab_size(), "tokens,", len(vectors), "vectors; tokenizers", tokenizers.__version__)
