"""Which connection is evicted when the limit is reached."""

from serve.server.connections import MAX_UNREAD_BYTES, ConnectionLimiter


class Fake:
    def __init__(self) -> None:
        self.evicted = False

    def evict(self) -> None:
        self.evicted = True


def test_the_connection_idle_longest_is_evicted() -> None:
    table: ConnectionLimiter[Fake] = ConnectionLimiter(2)
    first, second, third = Fake(), Fake(), Fake()
    assert table.add(first)
    assert table.add(second)
    assert table.add(third)
    assert (first.evicted, second.evicted, len(table)) == (True, False, 2)


def test_busy_connections_are_not_evicted_and_a_new_one_is_refused() -> None:
    table: ConnectionLimiter[Fake] = ConnectionLimiter(2)
    busy = [Fake(), Fake()]
    for connection in busy:
        table.add(connection)
        table.mark_busy(connection)
    refused = [Fake(), Fake()]
    assert not table.add(refused[0])
    assert not table.add(refused[1])
    assert not any(connection.evicted for connection in busy)
    assert (refused[0].evicted, len(table)) == (True, 3)  # the latest refused one has time to read its refusal
    table.mark_idle(busy[0])
    assert table.add(Fake())
    assert (refused[1].evicted, busy[0].evicted, len(table)) == (True, True, 2)


def test_an_answered_connection_becomes_the_one_idle_shortest() -> None:
    table: ConnectionLimiter[Fake] = ConnectionLimiter(2)
    first, second = Fake(), Fake()
    table.add(first)
    table.add(second)
    table.mark_busy(first)
    table.mark_idle(first)
    assert table.add(Fake())
    assert (first.evicted, second.evicted) == (False, True)


def test_removed_connections_do_not_count() -> None:
    table: ConnectionLimiter[Fake] = ConnectionLimiter(1)
    for _ in range(3):
        connection = Fake()
        assert table.add(connection)
        table.mark_busy(connection)
        table.remove(connection)
        table.mark_idle(connection)  # its last response may end after it was closed
    assert len(table) == 0


def test_the_connection_unread_longest_is_evicted_above_the_limit_on_unread_bytes() -> None:
    table: ConnectionLimiter[Fake] = ConnectionLimiter(9)
    first, second, third, fourth = (Fake() for _ in range(4))
    for connection in (first, second, third, fourth):
        table.add(connection)
    table.set_unread(first, MAX_UNREAD_BYTES // 2)
    table.set_unread(second, MAX_UNREAD_BYTES // 4)
    table.clear_unread(first)  # and then leaves data unread again
    table.set_unread(first, MAX_UNREAD_BYTES // 2)
    table.set_unread(third, MAX_UNREAD_BYTES // 4)
    assert not any(connection.evicted for connection in (first, second, third))
    table.set_unread(fourth, 1)
    assert [connection.evicted for connection in (first, second, third, fourth)] == [False, True, False, False]
    assert len(table) == 3
    table.remove(first)
    table.set_unread(fourth, MAX_UNREAD_BYTES // 2)
    assert not (third.evicted or fourth.evicted)
