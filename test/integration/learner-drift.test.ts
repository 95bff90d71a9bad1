/**
 * A device that loses more than was measured: a real learner with the real engine, a real coordinator and Redis, and devices
 * that tell what a test has them tell. λ is held back at once and a measurement is queued, of that device alone; it comes back
 * when the device loses no more than the texts do.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { join } from 'node:path';
import { Queue } from 'bullmq';
import { DeviceInfo, type DeviceKnowledge, ExpertUse, TelemetryFrame } from '@moefleet/proto';
import type { TestAgent } from '../../coordinator/src/testing/test-agent';
import { call, startCoordinator, type TestCoordinator } from '../../coordinator/src/testing/test-coordinator';
import { MODEL, REPO, WIKITEXT } from '../harness/paths';
import { until } from '../harness/ports';
import { startRedis, type TestRedis } from '../harness/redis';

const LAYERS = 6;
const EXPERTS = 32;
const TOP_K = 4;
const CAPACITY = 16;
const EXPERT_BYTES = 78_336n;
let redis: TestRedis;
let coordinator: TestCoordinator;
let learner: ChildProcess;
let learnerLog = '';
let modelHash: string;
let queue: Queue;

beforeAll(async () => {
  redis = await startRedis();
  coordinator = await startCoordinator(redis.url, { env: { MOEFLEET_EXPERT_USE_INTERVAL: '0.2', MOEFLEET_LEARNER_GATE: 'none' } });
  queue = new Queue('learner', { connection: { url: redis.url }, prefix: `{${coordinator.prefix}:bull}` });
  const flags = { model: MODEL, text: WIKITEXT, tokens: '512', http: '127.0.0.1:0', redisUrl: redis.url, redisPrefix: coordinator.prefix, operator: coordinator.addresses().operatorAddress };
  learner = spawn(process.execPath, ['-e', `require(${JSON.stringify(join(REPO, 'services', 'learner', 'dist', 'main.js'))}).runLearner(${JSON.stringify(flags)}, {}).then((code) => process.exit(code))`], { stdio: ['ignore', 'ignore', 'pipe'] });
  learner.stderr!.on('data', (data: Buffer) => { learnerLog += data.toString(); });
  modelHash = await until('the learner has read its model', () => /"modelHash":"([0-9a-f]+)"/.exec(learnerLog)?.[1]);
});
afterAll(async () => {
  learner?.kill('SIGKILL');
  await queue?.close();
  await coordinator?.close();
  await redis?.close();
});

const joined = (id: string) => coordinator.join({
  id, effective: true, info: DeviceInfo.fromPartial({
    hostname: id, agentVersion: '0', limits: { maxCacheBytes: BigInt(LAYERS * CAPACITY) * EXPERT_BYTES, maxLambda: 1, maxCapacities: Array(LAYERS).fill(CAPACITY) },
    model: { hash: modelHash, name: 'tiny', experts: EXPERTS, topK: TOP_K, moeLayers: Array.from({ length: LAYERS }, (_, i) => i), expertBytes: Array(LAYERS).fill(EXPERT_BYTES), status: 2 },
  }),
});

/** What a device has counted since its boot: `decoded` goes on from there. */
class Counters {
  private tokens = 0;
  private massLost = 0;
  private sequence = 0;

  constructor(private readonly agent: TestAgent) {}

  /**
   * `massLost` per routing event; a tenth of its slots misses, each for 2 of the 10 ms of a token, and a twentieth is swapped. It tells
   * the share `told` of its misses and calls the others hits, tells its hits `hits` times, and reads `scored` bytes for every text it scores.
   */
  decoded(tokens: number, massLost: number, { told = 1, hits = 1, scored = 0n } = {}): void {
    this.tokens += tokens;
    this.massLost += tokens * massLost;
    this.sequence += 1;
    const slots = this.tokens * TOP_K;
    const misses = slots / 10;
    const toldMisses = Math.round(misses * told);
    const evaluationBytes = BigInt(this.sequence) * scored;
    this.agent.telemetry(TelemetryFrame.fromPartial({
      sequence: BigInt(this.sequence), timeMs: BigInt(this.sequence * 100_000), decodeTokens: BigInt(this.tokens), decodeNs: BigInt(this.tokens) * 10_000_000n, stallNs: BigInt(misses * LAYERS) * 2_000_000n,
      flashBytes: BigInt(misses * LAYERS) * EXPERT_BYTES + evaluationBytes, evaluationBytes, flashReads: BigInt(misses * LAYERS),
      layers: Array.from({ length: LAYERS }, (_, layer) => ({ layer, capacity: CAPACITY, resident: CAPACITY, hits: BigInt(hits * (slots - toldMisses)), misses: BigInt(toldMisses), swaps: BigInt(slots / 20), massLost: this.massLost, events: BigInt(this.tokens), rangeMean: 3 })),
    }));
  }
}

async function learns(): Promise<void> {
  const before = learnerLog.split('"msg":"learner run done"').length;
  await call(coordinator, 'runLearner', {});
  await until('the learner has run', () => learnerLog.split('"msg":"learner run done"').length > before && queue.getJobCounts('active', 'waiting').then((counts) => Object.values(counts).every((count) => count === 0)), 100_000);
}

const knowledge = async (id: string): Promise<DeviceKnowledge> => (await coordinator.registry.knowledge.get(id))!;
const lambdaOf = (agent: TestAgent) => agent.specs.at(-1)?.lambda ?? 0;
const arrived = (id: string, sequence: number) => until(`frame ${sequence} of ${id}`, async () => (await coordinator.registry.devices.read(id))!.telemetry?.sequence === BigInt(sequence));
const measurements = async () => (await queue.getJobs(['completed', 'active', 'waiting'])).filter(({ data }) => (data as { reason: string }).reason === 'drift');

let reports = 0;

/** 2,048 tokens that wanted a quarter of the experts, from this one on; told again until it is late enough to count. */
async function uses(agent: TestAgent, from: number): Promise<void> {
  const wanted = Array.from({ length: EXPERTS }, (_, expert) => ((expert - from + EXPERTS) % EXPERTS < EXPERTS / 4 ? 1024 : 0));
  const keptMs = async () => (await coordinator.registry.uses.get(agent.options.id))?.timeMs ?? 0n;
  const before = await keptMs();
  await until('its use is kept', async () => {
    reports += 1;
    agent.send({ $case: 'expertUse', value: ExpertUse.fromPartial({ sequence: BigInt(reports), modelHash, experts: EXPERTS, tokens: 2048n, layers: Array.from({ length: LAYERS }, () => ({ wanted, chosen: [] })) }) });
    return await keptMs() > before;
  });
}

test('λ of a device that loses more than the texts is held back, measured anew, and given back when it loses less; no other device is touched', async () => {
  const [stray, steady] = [await joined('stray'), await joined('steady')];
  const counters = { stray: new Counters(stray), steady: new Counters(steady) };
  await uses(stray, 0);
  await learns();
  const lambda = await until('both have a λ', () => (lambdaOf(steady) > 0 && lambdaOf(steady) === lambdaOf(stray) ? lambdaOf(stray) : null));
  const { topJ } = (await knowledge('stray')).choice!.chosen!;
  const surface = (await coordinator.registry.learner.getSurface(modelHash, (await knowledge('stray')).choice!.textHashes[0]!))!;
  const { massLost } = surface.points.find((point) => point.lambda === lambda && point.topJ === topJ)!;

  // As the texts do.
  const [strayLost, steadyLost] = [2 * massLost, massLost];
  counters.stray.decoded(20, massLost);
  counters.steady.decoded(20, massLost);
  await Promise.all([arrived('stray', 1), arrived('steady', 1)]);
  await learns();
  const before = { stray: stray.specs.length, steady: steady.specs.length };
  counters.stray.decoded(800, massLost);
  counters.steady.decoded(800, steadyLost);
  await uses(stray, 0);
  await Promise.all([arrived('stray', 2), arrived('steady', 2)]);
  await learns();
  expect((await knowledge('stray')).drift).toMatchObject({ causes: [], reason: '', hold: undefined, windows: [{ slots: 19_200n, misses: 1920n, swaps: 960n }] });
  expect({ stray: stray.specs.length, steady: steady.specs.length }).toEqual(before);
  expect(await measurements()).toEqual([]);

  // Twice as much on the one, and on another workload.
  counters.stray.decoded(4000, strayLost);
  counters.steady.decoded(4000, steadyLost);
  await uses(stray, 16);
  await uses(stray, 16);
  await Promise.all([arrived('stray', 3), arrived('steady', 3)]);
  await learns();
  await until('λ has gone back', () => lambdaOf(stray) < lambda);
  const held = (await knowledge('stray')).drift!;
  expect(held).toMatchObject({ causes: ['workload'], hold: { seenLambda: lambda, seenTopJ: topJ, measuredAnew: true } });
  expect(held.workloadBits.every((bits) => bits > 0.5)).toBe(true);
  expect(lambdaOf(stray)).toBeLessThanOrEqual(held.hold!.lambda);
  expect(held.hold!.factor).toBeGreaterThan(1.5);
  expect(learnerLog).toContain('λ held back: more is lost than was measured');
  expect(await measurements()).toHaveLength(1);
  expect((await call(coordinator, 'getLearner', {})).proposals.find(({ deviceId }) => deviceId === 'stray')!.reason).toMatch(/λ held at 0[.\d]* or less: 0\.\d+ of softmax mass is lost per event/);
  expect((await knowledge('steady')).drift).toMatchObject({ causes: [], hold: undefined });
  expect(steady.specs).toHaveLength(before.steady);

  // No more than the texts do, under what it was given.
  counters.stray.decoded(20, 0);
  await arrived('stray', 4);
  await learns();
  counters.stray.decoded(2000, massLost / 1000);
  await arrived('stray', 5);
  await learns();
  expect((await knowledge('stray')).drift!.hold).toBeUndefined();
  // What is on its way when a run proposes waits for the next.
  await until('λ is back', async () => {
    if (lambdaOf(stray) === lambda) return true;
    await learns();
    return false;
  }, 100_000);
});

test('devices that cannot have had the hits they tell of, and one that loses more than there is, are quarantined with the reason, and teach nobody', async () => {
  const told = { liar: { told: 0.1 }, boaster: { hits: 2 }, broken: {}, measured: { scored: 10n ** 9n }, honest: {} };
  const names = Object.keys(told) as (keyof typeof told)[];
  const agents = await Promise.all(names.map(joined));
  const counters = agents.map((agent) => new Counters(agent));
  await learns();
  await until('all have a λ', () => agents.every((agent) => lambdaOf(agent) > 0));
  for (const [at, tokens] of [20, 800].entries()) {
    names.forEach((name, i) => counters[i]!.decoded(tokens, name === 'broken' ? 2 : 0.001, told[name]));
    await Promise.all(names.map((name) => arrived(name, at + 1)));
    await learns();
  }
  const known = Object.fromEntries(await Promise.all(names.map(async (name) => [name, await knowledge(name)] as const)));
  const reasons = { liar: /its hits are not what it says/, boaster: /\d+ hits and \d+ misses are \d+ slots, \d+ tokens of top 4 make \d+/, broken: /of mass lost in \d+ events, expected at most one per event/ };
  const proposals = new Map((await call(coordinator, 'getLearner', {})).proposals.map((one) => [one.deviceId, one]));
  for (const [name, reason] of Object.entries(reasons)) {
    expect(known[name]!.speed?.windows ?? 0n).toBe(0n);
    expect(known[name]).toMatchObject({ quarantine: { reason: expect.stringMatching(reason) }, outcomes: [] });
    expect(proposals.get(name)).toMatchObject({ proposed: false, reason: expect.stringMatching(/^its telemetry is not believed: /) });
  }
  expect(known['measured']!.speed?.windows ?? 0n).toBe(0n);
  expect(known['measured']).toMatchObject({ quarantine: undefined, outcomes: [] });
  expect(known['honest']).toMatchObject({ quarantine: undefined, speed: { windows: 1n } });
  for (const name of ['measured', 'honest']) expect(proposals.get(name)).toMatchObject({ proposed: true });
  await Promise.all(agents.map((agent) => agent.leave()));
});
