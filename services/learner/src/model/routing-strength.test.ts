import { Routing, ROUTINGS } from '@moefleet/proto';
import fc from 'fast-check';
import { fieldsOf, ROUTING_NAMES, settingOfFields, settingText, strengths } from './routing-strength';
import { sameSetting, type Setting } from './setting';

const RANKS = { experts: 32, topK: 4 };

test('what a device is told of a setting, and tells, is that setting again', () => {
  fc.assert(fc.property(fc.constantFrom(...ROUTING_NAMES), fc.nat(), fc.integer({ min: 1, max: 3 }), fc.integer({ min: 5, max: 512 }), (name, at, topJ, experts) => {
    const ranks = { experts, topK: 4 };
    const able = strengths(ROUTINGS[name], ranks);
    const setting: Setting = { routing: ROUTINGS[name], lambda: able[at % able.length]!, topJ, capacities: [4] };
    expect(settingOfFields(fieldsOf(setting, ranks), [4], ranks)).toEqual(setting);
  }));
});

test('a routing is told by the field that it reads, and a λ that an older coordinator would take is 0', () => {
  const of = (routing: Routing, lambda: number) => fieldsOf({ routing, lambda, topJ: 1 }, RANKS);
  expect(of(Routing.ROUTING_CACHE_PRIOR, 0.2)).toEqual({ routing: Routing.ROUTING_CACHE_PRIOR, lambda: 0.2, topJ: 1 });
  expect(of(Routing.ROUTING_MAX_RANK, 0.5)).toEqual({ routing: Routing.ROUTING_MAX_RANK, lambda: 0, topJ: 1, maxRank: 18 });
  expect(of(Routing.ROUTING_CUMULATIVE_THRESHOLD, 0.7)).toEqual({ routing: Routing.ROUTING_CUMULATIVE_THRESHOLD, lambda: 0, topJ: 1, massThreshold: 0.7 });
  expect(of(Routing.ROUTING_PRUNED, 1)).toEqual({ routing: Routing.ROUTING_PRUNED, lambda: 0, topJ: 1 });
  expect(of(Routing.ROUTING_MAX_RANK, 0)).toMatchObject({ routing: Routing.ROUTING_CACHE_PRIOR, lambda: 0 });
});

test('the model\'s own choice is λ 0 under any name', () => {
  const own = [{ routing: Routing.ROUTING_ORIGINAL }, { routing: Routing.ROUTING_CACHE_PRIOR }, { routing: Routing.ROUTING_UNSPECIFIED }, { routing: Routing.ROUTING_MAX_RANK, maxRank: 4 }, { routing: Routing.ROUTING_CUMULATIVE_THRESHOLD, massThreshold: 0 }]
    .map((fields) => settingOfFields({ lambda: 0, topJ: 2, ...fields }, [8], RANKS)!);
  for (const one of own) expect(one).toEqual({ routing: Routing.ROUTING_CACHE_PRIOR, lambda: 0, topJ: 2, capacities: [8] });
  expect(sameSetting({ ...own[0]!, routing: Routing.ROUTING_MAX_RANK }, own[0]!)).toBe(true);
  expect(settingOfFields({ routing: 9 as Routing, lambda: 0.5, topJ: 1 }, [8], RANKS)).toBeNull();
});

test('names a setting by its routing', () => {
  const text = (routing: Routing, lambda: number) => settingText({ routing, lambda, topJ: 2 }, RANKS);
  expect([text(Routing.ROUTING_CACHE_PRIOR, 0.25), text(Routing.ROUTING_MAX_RANK, 1), text(Routing.ROUTING_CUMULATIVE_THRESHOLD, 0.6), text(Routing.ROUTING_PRUNED, 1), text(Routing.ROUTING_MAX_RANK, 0)])
    .toEqual(['λ 0.25 topJ 2', 'max_rank 32 topJ 2', 'cumulative_threshold 0.6 topJ 2', 'pruned topJ 2', 'λ 0']);
});
