import { type Device, DeviceKnowledge, Reported, Routing, TelemetryFrame } from '@moefleet/proto';
import { lookAt } from './device-sight';
import { deviceCapacities } from './device-capacities';
import { memoryOf } from './knowledge';
import { frame, SHAPE } from './model/testing/synthetic';
import { learnableDevice } from './testing/learnable-device';

const GENERATION = 3n;

/** The device once it has decoded so much; `changed` afterwards. */
function seen(telemetry: TelemetryFrame | undefined, changed: Partial<Device> = {}): Device {
  const device = learnableDevice('a');
  device.info!.model!.expertBytes = SHAPE.expertBytes.map(BigInt);
  device.info!.limits!.maxCacheBytes = 32n << 20n;
  return {
    ...device, bootId: 'boot-1', telemetry,
    reported: Reported.fromPartial({ appliedGeneration: GENERATION, effective: { routing: Routing.ROUTING_CACHE_PRIOR, lambda: 0.2, topJ: 1, capacities: [16, 16], cacheBytes: 32n << 20n } }),
    ...changed,
  };
}

function look(...devices: Device[]) {
  let known: ReturnType<typeof lookAt> | null = null;
  for (const [i, device] of devices.entries()) known = lookAt(device, known, 1000 * i);
  return known!;
}

const steady = (count: number, from = 1) => Array.from({ length: count }, (_, i) => seen(frame({ sequence: from + i, tokens: 300 * (from + i) })));

test('learns speed and misses from frame to frame, under the setting in force', () => {
  const known = look(...steady(5));
  expect(known.speed).toMatchObject({ windows: 4n, tokens: 1200n });
  expect(known.outcomes).toHaveLength(1);
  expect(known.outcomes[0]).toMatchObject({ lambda: 0.2, topJ: 1, windows: 4n, slots: 9600n, misses: 2400n });
  expect(known.outcomes[0]!.observedTokensPerSecond).toBeCloseTo(50, 6);
});

test('keeps with a setting what was predicted of it when it was chosen, and how surely', () => {
  const [first, second, third] = steady(3);
  const known = look(first!, second!);
  const chosen = { routing: Routing.ROUTING_CACHE_PRIOR, lambda: 0.3, topJ: 1, capacities: [16, 16], tokensPerSecond: 60, tokensPerSecondSd: 4 };
  const brought = DeviceKnowledge.fromPartial({ ...known, choice: { chosen } });
  const under = (device: Device) => ({ ...device, reported: Reported.fromPartial({ ...device.reported, effective: { ...device.reported!.effective, lambda: 0.3 } }) });
  const after = [third!, ...steady(2, 4)].map(under).reduce((was, device, i) => lookAt(device, was, 5000 + 1000 * i), brought);
  expect(after.outcomes).toMatchObject([{ lambda: 0.2, predictedTokensPerSecond: 0 }, { lambda: 0.3, predictedTokensPerSecond: 60, predictedTokensPerSecondSd: 4 }]);
});

test('the same frame twice counts once, and a new boot begins with its first frame', () => {
  const device = seen(frame({ sequence: 2, tokens: 600 }));
  const once = look(steady(1)[0]!, device);
  expect(lookAt(device, once, 5000)).toMatchObject({ speed: { windows: 1n } });
  const rebooted = lookAt(seen(frame({ sequence: 1, tokens: 300 }), { bootId: 'boot-2' }), once, 6000);
  expect(rebooted).toMatchObject({ bootId: 'boot-2', speed: { windows: 1n } });
});

test('a window in which the setting changed tells of neither', () => {
  const changed = seen(frame({ sequence: 2, tokens: 600 }));
  changed.reported!.appliedGeneration = GENERATION + 1n;
  changed.reported!.effective!.lambda = 0.3;
  const known = look(steady(1)[0]!, changed);
  expect(known.speed).toBeUndefined();
  const after = lookAt({ ...changed, telemetry: frame({ sequence: 3, tokens: 900 }) }, known, 9000);
  expect(after.outcomes.map(({ lambda }) => lambda)).toEqual([0.3]);
});

test('a device that contradicts itself is quarantined with the reason, teaches nothing, and is believed after three sound windows', () => {
  const good = look(...steady(3));
  const bad = frame({ sequence: 4, tokens: 1200 });
  bad.layers[0]!.massLost = Number.NaN;
  const known = lookAt(seen(bad), good, 5000);
  expect(known.quarantine).toMatchObject({ windows: 1n, sinceMs: 5000n, reason: expect.stringMatching(/massLost is NaN/) });
  expect(known.speed).toEqual(good.speed);
  expect(known.frame).toEqual(good.frame);

  const [one, two, three] = [5, 6, 7].map((sequence) => seen(frame({ sequence, tokens: 300 * sequence })));
  const twice = lookAt(two!, lookAt(one!, known, 6000), 7000);
  expect(twice.quarantine).toMatchObject({ sound: 2 });
  expect(twice.speed).toEqual(good.speed);
  expect(lookAt(three!, twice, 8000)).toMatchObject({ quarantine: undefined, speed: { windows: 3n } });
});

describe('reads that its misses do not explain', () => {
  const READ = BigInt(300 * 4 * 0.25 * 2 * (1 << 20));
  /** Reads what a quarter of misses take, tells of `missRate`; `scored` bytes besides. */
  const reads = (sequence: number, missRate: number, scored = 0n) => seen({ ...frame({ sequence, tokens: 300 * sequence, missRate }), flashBytes: BigInt(sequence) * (READ + scored), evaluationBytes: BigInt(sequence) * scored });
  const frames = (count: number, missRate: number, scored = 0n) => Array.from({ length: count }, (_, i) => reads(1 + i, missRate, scored));

  test('a device that calls misses hits is quarantined at once, and teaches nothing for as long as it does', () => {
    expect(look(...frames(6, 0.05))).toMatchObject({ quarantine: { windows: 5n, reason: expect.stringMatching(/its hits are not what it says/) }, speed: undefined, outcomes: [] });
  });

  test('a device that is measured again and again never is, and is learnt from when that ends', () => {
    const measured = look(...frames(9, 0.25, 10n ** 10n));
    expect(measured).toMatchObject({ quarantine: undefined, speed: undefined });
    const after = seen({ ...frame({ sequence: 10, tokens: 3000 }), flashBytes: 10n * READ + 9n * 10n ** 10n, evaluationBytes: 9n * 10n ** 10n });
    expect(lookAt(after, measured, 10_000)).toMatchObject({ quarantine: undefined, speed: { windows: 1n } });
  });
});

test('a device that idles comes out of quarantine too, and one whose engine starts late never enters it', () => {
  const bad = frame({ sequence: 1, tokens: 300 });
  bad.layers[0]!.massLost = Number.NaN;
  const idle = [2, 3, 4].map((sequence) => seen(frame({ sequence, tokens: 300 })));
  expect(look(seen(bad), idle[0]!, idle[1]!).quarantine).toMatchObject({ sound: 2 });
  expect(look(seen(bad), ...idle).quarantine).toBeUndefined();
  const silent = seen({ ...frame({ sequence: 1 }), layers: [] });
  expect(look(silent, ...idle).quarantine).toBeUndefined();
});

describe('under another routing', () => {
  const under = (effective: Partial<NonNullable<NonNullable<Device['reported']>['effective']>>, generation = GENERATION, dropped = 0) => (telemetry: TelemetryFrame): Device => {
    const device = seen({ ...telemetry, layers: telemetry.layers.map((layer) => ({ ...layer, hits: layer.hits - BigInt(Math.floor(Number(layer.hits) * dropped)) })) });
    device.reported!.appliedGeneration = generation;
    Object.assign(device.reported!.effective!, { lambda: 0, ...effective });
    return device;
  };
  const frames = (count: number, from = 1) => Array.from({ length: count }, (_, i) => frame({ sequence: from + i, tokens: 300 * (from + i) }));

  test.each([
    [{ routing: Routing.ROUTING_MAX_RANK, maxRank: 18 }, { routing: Routing.ROUTING_MAX_RANK, lambda: 0.5 }],
    [{ routing: Routing.ROUTING_CUMULATIVE_THRESHOLD, massThreshold: 0.7 }, { routing: Routing.ROUTING_CUMULATIVE_THRESHOLD, lambda: 0.7 }],
    [{ routing: Routing.ROUTING_ORIGINAL }, { routing: Routing.ROUTING_CACHE_PRIOR, lambda: 0 }],
  ])('what is seen under %j is of that setting, not of λ 0', (effective, setting) => {
    expect(look(...frames(4).map(under(effective))).outcomes).toMatchObject([{ ...setting, topJ: 1, windows: 3n }]);
  });

  test('one that leaves experts out is believed to use fewer, one that does not is not', () => {
    const pruned = look(...frames(4).map(under({ routing: Routing.ROUTING_PRUNED, topJ: 2 }, GENERATION, 0.4)));
    expect(pruned).toMatchObject({ quarantine: undefined, outcomes: [{ routing: Routing.ROUTING_PRUNED, lambda: 1, topJ: 2, windows: 3n, slots: 7200n }] });
    expect(look(...frames(4).map(under({ routing: Routing.ROUTING_PRUNED, topJ: 4 }, GENERATION, 0.4))).quarantine?.reason).toMatch(/slots/);
    expect(look(...frames(4).map(under({ routing: Routing.ROUTING_MAX_RANK, maxRank: 18 }, GENERATION, 0.4))).quarantine?.reason).toMatch(/slots/);
  });

  test('a window that began under it is not held against the device, and teaches nothing', () => {
    const before = frames(3).map(under({ routing: Routing.ROUTING_PRUNED, topJ: 2 }, GENERATION, 0.4));
    const [next] = frames(1, 4).map(under({ routing: Routing.ROUTING_CACHE_PRIOR, lambda: 0.2 }, GENERATION + 1n, 0.35));
    const known = look(...before, next!);
    expect(known).toMatchObject({ quarantine: undefined, outcomes: [{ routing: Routing.ROUTING_PRUNED, windows: 2n }] });
  });
});

test('with another model it begins anew', () => {
  const known = look(...steady(4));
  const other = seen(frame({ sequence: 9, tokens: 3000 }));
  other.info!.model!.hash = 'model-b';
  expect(lookAt(other, known, 9000)).toMatchObject({ modelHash: 'model-b', speed: undefined, outcomes: [] });
});

test('a shortage of memory makes what is safe smaller, and with it what the device is given', () => {
  const short = frame({ sequence: 2, tokens: 600 });
  short.cacheShrinks = 1n;
  const known = look(steady(1)[0]!, seen(short));
  expect(known.memory).toMatchObject({ safeBytes: BigInt(Math.floor(0.8 * (32 << 20))), badBytes: 32n << 20n, shortages: 1 });
  expect(deviceCapacities(seen(short), memoryOf(known), SHAPE)).toEqual({ capacities: [12, 12], from: 'safe memory' });
  expect(deviceCapacities(seen(short), null, SHAPE)).toEqual({ capacities: [16, 16], from: 'device limit' });
});

test('drift is told with the setting it came under', () => {
  const throttled = Array.from({ length: 12 }, (_, i) => {
    const sequence = 21 + i;
    const next = frame({ sequence, tokens: 300 * sequence });
    // Twice the time per token from the 20th frame on.
    next.decodeNs = BigInt(300 * 20 * 20e6 + 300 * (i + 1) * 40e6);
    return seen(next);
  });
  const known = look(...steady(20), ...throttled);
  expect(known.speed).toMatchObject({ driftCause: 'compute', driftSlower: true });
  expect(known.outcomes.at(-1)).toMatchObject({ drifted: true });
});
