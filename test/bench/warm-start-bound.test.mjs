import assert from 'node:assert/strict';
import { test } from 'node:test';
import { leastMisses } from './warm-start-bound.mjs';

/** Every start and every choice of a victim. */
function tried(events, promptEvents, experts, capacity) {
  const subsets = (from, size) => (size === 0 ? [[]] : from.flatMap((one, i) => subsets(from.slice(i + 1), size - 1).map((rest) => [one, ...rest])));
  const after = (members, t) => {
    if (t === events.length) return 0;
    const missed = t < promptEvents ? 0 : events[t].filter((one) => !members.includes(one)).length;
    const all = [...new Set([...members, ...events[t]])];
    const free = all.filter((one) => !events[t].includes(one));
    const keeps = subsets(free, Math.min(free.length, capacity - events[t].length));
    return missed + Math.min(...keeps.map((kept) => after([...events[t], ...kept], t + 1)));
  };
  const prompt = [...new Set(events.slice(0, promptEvents).flat())];
  return Math.min(...subsets([...Array(experts).keys()], capacity).map((start) => prompt.filter((one) => !start.includes(one)).length + after(start, 0)));
}

test('is what trying everything finds', () => {
  let state = 7;
  const random = (n) => { state = (state * 1103515245 + 12345) % 2147483648; return Math.floor(state / 65536) % n; };
  for (let run = 0; run < 30; run += 1) {
    const events = Array.from({ length: 5 }, () => { const a = random(5); return [a, (a + 1 + random(4)) % 5]; });
    const promptEvents = random(2);
    assert.equal(leastMisses(events, promptEvents, 5, 3), tried(events, promptEvents, 5, 3), JSON.stringify({ events, promptEvents }));
  }
});
