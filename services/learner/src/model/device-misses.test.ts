import { Routing } from '@moefleet/proto';
import { ownMissRate } from '@moefleet/runtime';
import { deviceMisses } from './device-misses';
import { QualitySurface } from './quality-surface';

const shape = { experts: 32, topK: 4, expertBytes: [1, 1] };
const at = (lambda: number, capacity = 16) => ({ routing: Routing.ROUTING_CACHE_PRIOR, lambda, topJ: lambda > 0 ? 1 : 0, capacities: [capacity, capacity] });
const point = (lambda: number, missRate: number, loss: number) => ({ ...at(lambda), missRate, layerMissRates: [missRate * 0.8, missRate * 1.2], loss, stderr: 0.001, massLost: lambda / 10 });
const surface = new QualitySurface([{ domain: 'wiki', points: [point(0, 0.2, 0), point(0.2, 0.05, 0.01)] }], shape);

test('nothing seen: as the texts, and unsure of it', () => {
  expect(deviceMisses(surface, [])).toMatchObject({ strangeShare: 0, factor: 1 });
  expect(deviceMisses(surface, []).sdSeen).toBeGreaterThan(0.3);
  expect(deviceMisses(surface, [{ setting: at(0, 5), slots: 1e6, misses: 1e5 }])).toEqual(deviceMisses(surface, []));
});

test('what was seen at one setting, and at several, is what is expected there', () => {
  const truth = { strangeShare: 0.3, factor: 1 };
  const seen = (lambda: number, slots: number) => ({ setting: at(lambda), slots, misses: slots * [0.8, 1.2].reduce((sum, by) => sum + ownMissRate(by * (lambda > 0 ? 0.05 : 0.2), truth) / 2, 0) });
  for (const observed of [[seen(0, 40_000)], [seen(0.2, 40_000)], [seen(0, 20_000), seen(0.2, 20_000)]]) {
    const found = deviceMisses(surface, observed);
    expect(found.strangeShare).toBeGreaterThan(0.28);
    expect(found.strangeShare).toBeLessThanOrEqual(0.3);
    expect(found.sdSeen).toBeLessThan(0.06);
    expect(found.sdOther).toBeGreaterThan(found.sdSeen);
  }
});

test('the latest settings tell, and not what was long ago', () => {
  const old = { setting: at(0), slots: 1e6, misses: 5e5 };
  const late = { setting: at(0.2), slots: 50_000, misses: 2500 };
  expect(deviceMisses(surface, [old, late])).toMatchObject({ strangeShare: 0, factor: 1 });
});

test('a device that missed nothing where the texts miss is believed', () => {
  expect(deviceMisses(surface, [{ setting: at(0), slots: 10_000, misses: 0 }]).factor).toBeLessThan(0.3);
});
