# Objects, dictionaries, strings and floating-point numbers: an event queue, a bigram table, and planets.
import heapq


class Event:
    __slots__ = ("time", "node")

    def __init__(self, time, node):
        self.time = time
        self.node = node

    def __lt__(self, other):
        return self.time < other.time


class Node:
    def __init__(self, name, peers):
        self.name = name
        self.peers = peers
        self.seen = 0

    def receive(self, event, state):
        self.seen += 1
        for peer in self.peers:
            state = (state * 1103515245 + 12345) & 0x7FFFFFFF
            if state & 3:
                yield Event(event.time + 1 + state % 50, peer)
        yield state


def events(count):
    nodes = [Node("node%d" % i, [(i * 7 + 1) % 40, (i * 3 + 2) % 40]) for i in range(40)]
    queue = [Event(0, 0), Event(0, 1)]
    state = 1
    for _ in range(count):
        event = heapq.heappop(queue)
        *more, state = nodes[event.node].receive(event, state)
        if len(queue) < 500:
            for one in more:
                heapq.heappush(queue, one)
        if not queue:
            queue.append(Event(event.time, state % 40))
    return " ".join("%s=%d" % (node.name, node.seen) for node in nodes)


def bigrams(count):
    table = {}
    word = "vitrine"
    for i in range(count):
        pair = word[i % 5 : i % 5 + 2]
        table[pair] = table.get(pair, 0) + i
        word = word[1:] + chr(97 + (i * i + len(table)) % 26)
    return sorted(table.items(), key=lambda item: (-item[1], item[0]))[:50]


def planets(steps):
    x, v = [0.0, 4.84, 8.34, 12.89, 15.37], [0.0, 0.6, -1.0, 1.1, 0.9]
    mass = [39.4, 0.03, 0.01, 0.001, 0.002]
    for _ in range(steps):
        for i in range(5):
            for j in range(i):
                distance = x[i] - x[j]
                square = distance * distance + 0.01
                pull = 0.001 * distance / (square * square**0.5)
                v[i] -= pull * mass[j]
                v[j] += pull * mass[i]
        x = [a + 0.001 * b for a, b in zip(x, v)]
    return [value.hex() for value in x]


print(events(100000))
print(bigrams(400000))
print(planets(15000))
