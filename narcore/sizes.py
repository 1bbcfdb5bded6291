"""Sizes as people read them: on pages and on the command line alike."""


def human_size(size: int) -> str:
    """``size`` bytes in a few characters: ``17 B``, ``1.5 KiB``, ``340 MiB``."""
    if size < 1024:
        return f"{size} B"
    value, units = size / 1024, iter(("KiB", "MiB", "GiB", "TiB", "PiB", "EiB"))
    unit = next(units)
    while value >= 1023.5:
        value, unit = value / 1024, next(units)
    return f"{value:.1f} {unit}" if value < 9.95 else f"{value:.0f} {unit}"
