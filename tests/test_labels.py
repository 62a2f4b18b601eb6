"""Where a name goes beside its mark: names are 20 wide and 6 high, marks reach 4 to each side."""

from victorctl.labels import Place, arrange

FRAME = (-100, -100, 100, 100)
SIZE = (20, 6)


def around(x, y):
    return (x - 4, y - 4, x + 4, y + 4)


def place(*marks, frame=FRAME, walls=()):
    boxes = [*(around(*mark) for mark in marks), *walls]
    return arrange(marks, [SIZE] * len(marks), frame=frame, obstacles=boxes)


def test_a_name_stands_to_the_right_of_its_mark():
    assert place((0, 0)) == [Place(9, -3, leader=False)]


def test_a_name_that_would_leave_the_frame_stands_to_the_left():
    assert place((80, 0)) == [Place(-29, -3, leader=False)]


def test_a_name_with_walls_on_both_sides_stands_above():
    walls = [(10, -99, 12, 99), (-12, -99, -10, 99)]

    assert place((0, 0), walls=walls) == [Place(-10, 9, leader=False)]


def test_names_of_marks_in_one_place_stand_around_it():
    right, left, above, below = (9, -3), (-29, -3), (-10, 9), (-10, -15)

    assert [(x, y) for x, y, _ in place(*[(0, 0)] * 4)] == [right, left, above, below]


def test_a_name_keeps_nearer_to_its_own_mark_than_to_another():
    # To the left is no room. To the right, 2 lower, it would touch nothing, but lie 4 from the
    # other mark and 9 from its own. 10 lower, it is 12 from the other and 11.4 from its own.
    names = place((0, 0), (10, 5), frame=(-5, -100, 100, 100))

    assert names[0] == Place(9, -13, leader=False)


def test_a_name_that_can_only_stand_by_another_mark_gets_a_line():
    # Only above the wall is room, and there the other mark, at (30, 40), is nearer. It covers the
    # heights up to 44; names are tried at every second height, so the first that fits is 45.
    names = place((0, 0), (30, 40), frame=(-5, -30, 100, 100), walls=[(-40, -30, 100, 32)])

    assert names == [Place(9, 45, leader=True), Place(9, -3, leader=False)]


def test_a_name_far_from_its_mark_gets_a_line_though_no_other_mark_is_near():
    # The wall ends 20 above the mark; the first height above it is 21, 22.8 from the mark.
    assert place((0, 0), walls=[(-99, -99, 99, 20)]) == [Place(9, 21, leader=True)]


def test_lines_to_names_run_through_no_other_name():
    marks = [(0, -4 * number) for number in range(9)]
    places = place(*marks, frame=(-5, -100, 200, 100))

    boxes = [(x + at.left, y + at.bottom) for (x, y), at in zip(marks, places, strict=True)]
    lines = [
        (mark, (left, bottom + SIZE[1] / 2))
        for mark, (left, bottom), at in zip(marks, boxes, places, strict=True)
        if at.leader
    ]
    assert len(lines) >= 5
    for (x0, y0), (x1, y1) in lines:
        for step in range(1, 100):
            x, y = x0 + (x1 - x0) * step / 100, y0 + (y1 - y0) * step / 100
            for left, bottom in boxes:
                inside = 0 < x - left < SIZE[0] and 0 < y - bottom < SIZE[1]
                assert not inside, (x, y)


def test_a_name_without_any_room_is_still_written():
    assert len(place((0, 0), frame=(-1, -1, 1, 1))) == 1
