/** What the exchange asks of the registry: seldom, also where there is nothing to be had. */
import { createLogger } from '@moefleet/runtime';
import { Metrics } from '../metrics';
import type { WarmStore } from '../registry/warm-store';
import { emptyProfile, type WarmProfile } from './warm-profile';
import { WarmExchange, warmListOf } from './warm-exchange';

const model = { hash: 'ab', layers: 1, experts: 4, topK: 2 };

function profile(counts: number[]): WarmProfile {
  return { ...emptyProfile(model, 0), reports: 1, counts: Float32Array.from(counts) };
}

/** A store whose profile a test sets, and how often it was read; a real one is in gateway/warm.test.ts. */
function world() {
  const state = { nowMs: 0, reads: 0, held: null as WarmProfile | null };
  const store = {
    admit: async () => 'counted' as const,
    add: async () => { state.held ??= profile([0.5, 0.5, 0, 0]); return true; },
    profiles: async () => { state.reads += 1; return new Map(state.held ? [['', state.held]] : []); },
  } as unknown as WarmStore;
  return { state, exchange: new WarmExchange(store, { intervalMs: 300_000, now: () => state.nowMs }, new Metrics(), createLogger('test', 'silent')) };
}

test('a storm of devices costs one read, with a list or without', async () => {
  const { state, exchange } = world();
  for (let i = 0; i < 5; i += 1) expect(await exchange.current(model, '')).toBeNull();
  expect(state.reads).toBe(1);
  state.held = profile([0.5, 0.5, 0, 0]);
  state.nowMs += 10_000;
  for (let i = 0; i < 5; i += 1) expect((await exchange.current(model, ''))?.ranked).toEqual([[0, 1]]);
  expect(state.reads).toBe(2);
});

test('what has been added here is to be had at once', async () => {
  const { state, exchange } = world();
  expect(await exchange.current(model, '')).toBeNull();
  await exchange.take({ deviceId: 'd', bootId: 'b', workload: '', model }, { sequence: 1n, modelHash: 'ab', experts: 4, tokens: 100n, layers: [{ wanted: [100, 100], chosen: [] }] });
  await exchange.drain();
  expect((await exchange.current(model, ''))?.ranked).toEqual([[0, 1]]);
  expect(state.reads).toBe(2);
});

test('the version stays until the list has shifted', async () => {
  const { state, exchange } = world();
  const read = async (counts: number[]) => {
    state.held = profile(counts);
    state.nowMs += 10_000;
    return (await exchange.current(model, ''))!;
  };
  const first = await read([0.5, 0.3, 0.2, 0]);
  expect((await read([0.3, 0.5, 0.2, 0])).version).toBe(first.version);
  const shifted = await read([0, 0.1, 0.4, 0.5]);
  expect(shifted.version).not.toBe(first.version);
  expect(warmListOf(shifted, 'ab', 'code', [2])).toMatchObject({ modelHash: 'ab', workload: 'code', layers: [{ experts: [3, 2] }] });
});
