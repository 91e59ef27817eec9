"""The device path: a picture and a phrase in, a mask out, with numpy, Pillow and `tokenizers` alone.

Open `pipeline.py` first: it reads like METHOD.md. The rest, by the step it serves:

    picture.py      any file, bytes or array -> [y, x, 3] uint8 RGB, or one clear error
    geometry.py     square, resize, normalise: what the encoders are fed
    scene.py        a picture as it is known before any phrase

    phrase.py       the phrase as a value: head word, place, size, relation
    reading.py      the rules that find them        wordlist.py   the words those rules know
    tokenizer.py    CLIP's byte pairs, and which token the head word is

    proposals.py    SAM's automatic mode            masks.py      boxes, areas, suppression
    resizing.py     its logits on the picture       kept_texts.py text work once per phrase
    peaks.py        prompts from a phrase's map     regions.py    small holes and islands
    generative.py   the diffusion branch            attention.py  logits -> maps -> heat on the picture
    schedule.py     diffusion's noise levels        noise.py      the seeded draws
    clip_branch.py  what CLIP says of candidates    discriminative.py  its two views
    crops.py, patches.py  what it is fed            buckets.py    sizes it is fed at
    places.py       where things lie                scoring.py    the fused score and the choice
    overlay.py      the answer, drawn

Nothing here opens an engine: the graphs come in as a `SessionFactory`.
"""
