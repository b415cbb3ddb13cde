"""The suffixes of media files, in lower case."""

# FFmpeg's containers of video.  An .ogg may hold either video or sound alone.
VIDEO_SUFFIXES = tuple(
    """
    .3g2 .3gp .amv .asf .avi .divx .dv .f4v .flv .h264 .h265 .hevc .ivf .m1v .m2t .m2ts .m2v .m4v .mj2 .mkv .mov
    .mp4 .mpe .mpeg .mpg .mts .mxf .nut .ogm .ogv .qt .rm .rmvb .ts .vob .webm .wmv .wtv .y4m .ogg
    """.split()
)
# Pictures that may move; they have no sound.
ANIMATION_SUFFIXES = (".apng", ".gif", ".webp")
# Pictures that stand still: clips of one frame.
STILL_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff")
SOUND_SUFFIXES = tuple(
    """
    .aac .ac3 .aif .aifc .aiff .amr .ape .au .caf .eac3 .flac .m4a .m4b .mka .mp2 .mp3 .oga .ogg .opus .spx .tta
    .w64 .wav .weba .wma .wv
    """.split()
)


def picture_suffixes(frames: int) -> tuple[str, ...]:
    """The suffixes of files for clips of so many frames; pictures only for a single frame."""
    stills = STILL_SUFFIXES if frames == 1 else ()
    return VIDEO_SUFFIXES + ANIMATION_SUFFIXES + stills
