import { LeaseRounds } from './lease-rounds';

function fleet(size: number) {
  let nowMs = 0;
  const ticked = new Map<number, number[]>();
  const members = Array.from({ length: size }, (_, at) => ({ tick: () => { ticked.set(at, [...ticked.get(at) ?? [], nowMs]); } }));
  const rounds = new LeaseRounds({ all: () => [...members] }, 5000, () => nowMs);
  const step = (rounds as unknown as { step(): void }).step.bind(rounds);
  return { rounds, ticked, members, pass: (ms: number) => { nowMs += ms; step(); } };
}

describe('the rounds in which leases are prolonged', () => {
  it('reach every device once in a period, a few at a time', () => {
    const { rounds, ticked, pass } = fleet(100);
    rounds.start();
    for (let ms = 0; ms < 20_000; ms += 200) {
      const before = [...ticked.values()].flat().length;
      pass(200);
      expect([...ticked.values()].flat().length - before).toBeLessThanOrEqual(5);
    }
    rounds.stop();
    expect(ticked.size).toBe(100);
    for (const times of ticked.values()) for (const [at, ms] of times.entries()) expect(ms - (times[at - 1] ?? 0)).toBeLessThanOrEqual(5200);
  });

  it('catch up after the event loop was held up', () => {
    const { rounds, ticked, pass } = fleet(10);
    rounds.start();
    pass(7000);
    rounds.stop();
    expect(ticked.size).toBe(10);
  });

  it('take in who has joined with the next round', () => {
    const { rounds, ticked, members, pass } = fleet(3);
    rounds.start();
    const ticks: number[] = [];
    members.push({ tick: () => { ticks.push(1); } });
    pass(5000);
    expect([ticked.size, ticks.length]).toEqual([3, 0]);
    pass(5000);
    expect(ticks.length).toBe(1);
    rounds.stop();
  });
});
