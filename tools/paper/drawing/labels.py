"""Finds places for labels where they cover no point, line or label."""

import math

# Directions round a point, the ones that read best first.
ANGLES = (0, 180, 90, 270, 30, 330, 150, 210, 60, 300, 120, 240)
DISTANCES = (9, 14, 20)
MARKER_PIXELS = 16
OUTSIDE, LABEL, POINT, LINE, FAR = 1000, 100, 60, 4, 1


def place_labels(axis, texts, points, preferred):
    """Moves each annotation to the cheapest of the places round its point.

    Args:
        axis: The axes, with limits set and all lines drawn.
        texts: Annotations in offset points, the important ones first.
        points: The (x, y) that each annotates, in data units.
        preferred: For each the angle to try first, in degrees, of ANGLES.
    """
    figure = axis.figure
    renderer = figure.canvas.get_renderer()
    frame = axis.get_window_extent(renderer)
    pixels = axis.transData.transform(points)
    samples = line_samples(axis)
    taken = []
    for text, first in zip(texts, preferred, strict=True):
        best = None
        for rank, (distance, angle) in enumerate(candidates(first)):
            move(text, distance, angle)
            box = text.get_window_extent(renderer)
            cost = FAR * rank + cost_of(box, frame, pixels, samples, taken)
            if best is None or cost < best[0]:
                best = cost, distance, angle
        move(text, *best[1:])
        taken.append(text.get_window_extent(renderer))


def candidates(first):
    angles = sorted(ANGLES, key=lambda angle: angle != first)
    return [(distance, angle) for distance in DISTANCES for angle in angles]


def move(text, distance, angle):
    x = math.cos(math.radians(angle))
    y = math.sin(math.radians(angle))
    text.set_position((distance * x, distance * y))
    text.set_ha('left' if x > 0.3 else 'right' if x < -0.3 else 'center')
    text.set_va('bottom' if y > 0.3 else 'top' if y < -0.3 else 'center')


def cost_of(box, frame, pixels, samples, taken):
    cost = 0
    inside = frame.x0 <= box.x0 and box.x1 <= frame.x1
    if not (inside and frame.y0 <= box.y0 and box.y1 <= frame.y1):
        cost += OUTSIDE
    cost += LABEL * sum(box.overlaps(other) for other in taken)
    cost += POINT * count_inside(box, pixels, MARKER_PIXELS)
    return cost + LINE * count_inside(box, samples, 2)


def count_inside(box, pixels, margin):
    return sum(
        box.x0 - margin < x < box.x1 + margin
        and box.y0 - margin < y < box.y1 + margin
        for x, y in pixels
    )


def line_samples(axis, spacing=12):
    """Points along every drawn line, in pixels."""
    samples = []
    for line in axis.get_lines():
        ends = axis.transData.transform(line.get_xydata())
        for (x0, y0), (x1, y1) in zip(ends[:-1], ends[1:], strict=True):
            steps = max(1, int(math.hypot(x1 - x0, y1 - y0) / spacing))
            samples += [
                (x0 + (x1 - x0) * i / steps, y0 + (y1 - y0) * i / steps)
                for i in range(steps + 1)
            ]
    return samples
