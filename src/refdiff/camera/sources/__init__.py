"""Sources of frames: a reader process for a camera, a stream, a video or files, and frames that are pushed.

    source.py         opens a source from one text: `open_source`, `SourceOptions`
    address.py        parses that text, and hides its passwords
    fault.py          says what is wrong with a source, and what to do
    reader_source.py  delivers the frames of a reader process, and starts it again
    process.py        the reader process as its parent sees it
    watch.py          when a reader is late, and how long to wait before the next one
    reader.py         the reader process; it reads folders and patterns, video.py and raw.py read the rest
    sink.py           hands frames from the reader to its parent, in the shared memory of ring.py
    push_source.py    takes frames from a callback

Each is a `FrameSource` (`refdiff.camera.frame`).
"""
