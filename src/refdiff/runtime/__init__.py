"""The device path: an image and a phrase in, a mask out, with numpy, Pillow and `tokenizers` alone.

Open `pipeline.py` first: it reads like docs/method.md. The rest, by the step it serves:

    image.py        any file, bytes or array -> [y, x, 3] uint8 RGB, or one clear error
    image_file.py   the formats that are decoded
    resize.py       square, resize, normalize: the inputs of the encoders, and masks on the image

    phrase.py       the phrase as a value: head word, place, size, relation
    head.py         the head word                   lexicon.py    the words that rules know
    query.py        phrases that can be used        tokenizer.py  CLIP's byte pairs, and the head word's token

    proposals.py    SAM's automatic mode            masks.py      boxes, duplicates, small regions
    point_prompts.py  where SAM is prompted         prompt.py     a caller's prompt, and SAM's tokens

    attention_branch.py  heatmaps                   diffusion.py  noise levels, guidance, maps
    clip_branch.py  scores of crops and in place    clip_inputs.py  crops, patches, attention masks
    spatial.py      positions and relations         scoring.py    the fused score and the choice

    encoded_image.py  an image before any phrase    text_cache.py text work once per phrase
    batching.py     rows of a graph's call          observer.py   named stages
    segmentation.py the answer: box, COCO, file     overlay.py    the answer, drawn

Nothing here opens an engine: the graphs come in as a `SessionFactory`.
"""
