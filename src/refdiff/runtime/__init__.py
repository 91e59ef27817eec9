"""The device path: a picture and a phrase in, a mask out, with numpy, Pillow and `tokenizers` alone.

Open `pipeline.py` first: it reads like METHOD.md. Below it, in the order a phrase meets them:

    picture.py      any file, bytes or array -> [y, x, 3] uint8 RGB, or one clear error
    geometry.py     square, resize, normalise: what each encoder is fed
    phrase.py       the phrase as a value: head word, place, size, relation
    reading.py      the rules that find them            wordlist.py   the words those rules know
    tokenizer.py    CLIP's byte pairs, and which token the head word is
    noise.py        the seeded draws                    schedule.py   diffusion's noise levels
    generative.py   phrase -> attention maps, over the diffusion graphs
    attention.py    logits -> normalised maps -> heat over the picture

Nothing here opens an engine: the graphs come in as a `SessionFactory`.
"""
