import { copyFileSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type Device, type QualitySurface, Reported, Routing, ROUTINGS, SurfacePoint, TelemetryFrame, ValueSource_Layer } from '@moefleet/proto';
import { createLogger } from '@moefleet/runtime';
import { until } from '../../../test/harness/ports';
import { CoordinatorLink } from './coordinator-link';
import { EvaluationProcess } from './evaluation-process';
import { EvaluationInputError, type EvaluationSubject, type Evaluator } from './evaluator';
import { type LearnerJobParts, runLearnerJob } from './learner-job';
import { emptySurface, pointAt } from './measured-surface';
import { ROUTING_NAMES, settingOfFields } from './model';
import { learnableDevice } from './testing/learnable-device';
import { ScriptedRegistry, surfaceKey } from './testing/scripted-registry';

const FIXTURES = join(__dirname, '..', '..', '..', 'test', 'fixtures');
const MODEL = join(FIXTURES, 'tinymoe-17m-q8_0.gguf');
const SOURCE = { modelPath: MODEL, textPaths: [join(FIXTURES, 'wikitext.txt')], tokens: 512, context: 256, threads: 1 };
const log = createLogger('test', 'silent');
const never = new AbortController().signal;

describe('with the real engine on the reference model', () => {
  let registry: ScriptedRegistry;
  let link: CoordinatorLink;
  let subject: EvaluationSubject;
  let opened: number;
  const activities: string[] = [];

  beforeAll(async () => {
    const evaluator = await EvaluationProcess.open(SOURCE, never);
    ({ subject } = evaluator);
    await evaluator.close();
  });
  beforeEach(async () => {
    opened = 0;
    activities.length = 0;
    registry = new ScriptedRegistry();
    await registry.start();
    link = new CoordinatorLink(registry.address, null, log, () => 0);
  });
  afterEach(() => {
    link.close();
    registry.stop();
  });

  function parts(open: (signal: AbortSignal) => Promise<Evaluator> = (signal) => EvaluationProcess.open(SOURCE, signal)): LearnerJobParts {
    return {
      registry: link, identify: async () => [subject], log, tokens: SOURCE.tokens, budget: { meanNats: Math.log1p(0.01), worstNats: Math.log1p(0.02) }, budgetRules: [], routings: [Routing.ROUTING_CACHE_PRIOR], nowMs: () => 99,
      openEvaluator: (_subject, signal) => { opened += 1; return open(signal); },
      report: (activity) => { activities.push(activity); }, queueRun: () => {}, pointMeasured: () => {},
    };
  }
  const own = { routing: Routing.ROUTING_CACHE_PRIOR, lambda: 0, topJ: 0 };
  const layers = (capacity: number) => Array<number>(6).fill(capacity);
  const device = (id: string, capacity: number) => learnableDevice(id, { modelHash: subject.modelHash, maxCapacities: layers(capacity) });
  const surfaceOf = ({ modelHash, domains }: EvaluationSubject) => registry.surfaces.get(surfaceKey({ modelHash, textHash: domains[0]!.textHash }))!;
  const only = () => surfaceOf(subject);

  test('measures where the budget runs, proposes what it has measured, and measures no more than what a new device adds', async () => {
    registry.devices = [device('half', 16), learnableDevice('other', { modelHash: 'model-b', maxCapacities: layers(16) })];
    const first = await runLearnerJob(parts(), never);
    expect(first).toMatchObject({ devices: 2, proposed: 1, rolloutIds: ['rollout-1'] });
    expect(registry.puts).toBe(first.measuredPoints);
    expect(first.measuredPoints).toBeLessThan(20);

    const baseline = pointAt(only(), { ...own, capacities: layers(16) })!;
    expect(baseline.missRate).toBeGreaterThan(0.1);
    expect(baseline.layerMissRates).toHaveLength(6);
    expect(only()).toMatchObject({ engineVersion: subject.engineVersion, domain: 'wikitext' });
    expect(only().baselineCrossEntropy).toBeGreaterThan(3);
    expect(only().points.some(({ lambda, missRate }) => lambda > 0 && missRate < baseline.missRate / 2)).toBe(true);

    const proposals = new Map(registry.proposed.flat().map((one) => [one.deviceId, one]));
    const half = proposals.get('half')!;
    expect(half).toMatchObject({ proposed: true, capacities: layers(16), textHash: subject.domains[0]!.textHash, timeMs: 99n, baselineMissRate: baseline.missRate });
    const taken = pointAt(only(), settingOfFields(half, half.capacities, subject)!)!;
    // Misses are made to fall along λ, which moves points that are out of order by less than this.
    expect(Math.abs(half.predictedMissRate - taken.missRate)).toBeLessThan(0.003);
    expect(proposals.get('other')).toMatchObject({ proposed: false });
    expect(registry.knowledge.get('half')!.choice!.chosen).toMatchObject({ lambda: half.lambda, measured: true });
    expect(activities.some((activity) => /measuring λ 0.2 topJ 1 at capacity 16: \d+%/.test(activity))).toBe(true);
    expect(activities.at(-1)).toBe('');

    const again = await runLearnerJob(parts(), never);
    expect(again.measuredPoints).toBe(0);
    expect(opened).toBe(1);
    expect(registry.proposed.slice(2)).toEqual(registry.proposed.slice(0, 2));

    registry.devices.push(device('quarter', 8));
    const points = only().points.filter(({ capacities }) => capacities[0] === 16);
    expect((await runLearnerJob(parts(), never)).proposed).toBe(2);
    expect(only().points.filter(({ capacities }) => capacities[0] === 16)).toEqual(points);
    expect(pointAt(only(), { ...own, capacities: layers(8) })!.missRate).toBeGreaterThan(baseline.missRate);
  });

  test('keeps what is measured when it is stopped, and goes on from there to the same surface', async () => {
    registry.devices = [device('half', 16)];
    const stop = new AbortController();
    const running = runLearnerJob(parts(), stop.signal);
    await until('some points are stored', () => registry.puts >= 4);
    stop.abort(new Error('stopping'));
    await expect(running).rejects.toThrow('stopping');
    expect(registry.proposed).toEqual([]);
    const kept = only().points;

    const resumed = await runLearnerJob(parts(), never);
    expect(only().points.slice(0, kept.length)).toEqual(kept);
    const interrupted = only().points;

    registry.surfaces.clear();
    registry.knowledge.clear();
    const whole = await runLearnerJob(parts(), never);
    expect(resumed.measuredPoints + kept.length).toBe(whole.measuredPoints);
    interrupted.forEach((point, i) => {
      expect(point).toMatchObject({ lambda: only().points[i]!.lambda, topJ: only().points[i]!.topJ });
      expect(point.crossEntropyLoss).toBeCloseTo(only().points[i]!.crossEntropyLoss, 9);
    });
  });

  test('measures every text, and tells the worst beside the mean', async () => {
    const several = { ...SOURCE, textPaths: ['wikitext.txt', 'code.txt'].map((name) => join(FIXTURES, name)) };
    const evaluator = await EvaluationProcess.open(several, never);
    const domains = evaluator.subject;
    await evaluator.close();
    registry.devices = [device('half', 16)];
    await runLearnerJob({ ...parts((signal) => EvaluationProcess.open(several, signal)), identify: async () => [domains] }, never);
    expect([...registry.surfaces.values()].map(({ domain }) => domain).sort()).toEqual(['code', 'wikitext']);
    const choice = registry.knowledge.get('half')!.choice!;
    expect(choice.domains.map(({ domain }) => domain)).toEqual(['wikitext', 'code']);
    expect(choice.chosen!.worst!.loss!.upper).toBeGreaterThanOrEqual(Math.max(...choice.domains.map(({ loss }) => loss!.upper)) - 1e-12);
    expect(choice.chosen!.loss!.upper).toBeLessThanOrEqual(choice.meanBudgetNats);
    expect(choice.chosen!.worst!.loss!.upper).toBeLessThanOrEqual(choice.worstBudgetNats);
  });

  describe('of two models', () => {
    const second = { ...SOURCE, modelPath: join(FIXTURES, 'tinyolmoe-22m-q8_0.gguf') };
    let other: EvaluationSubject;
    const measured = new Map<string, QualitySurface>();
    const open = (of: EvaluationSubject, signal: AbortSignal) => EvaluationProcess.open(of === other ? second : SOURCE, signal);
    const both = (changed: Partial<LearnerJobParts> = {}): LearnerJobParts => ({ ...parts(), identify: async () => [subject, other], openEvaluator: open, ...changed });
    const otherDevice = (id: string, capacity: number) => {
      const device = learnableDevice(id, { modelHash: other.modelHash, maxCapacities: Array<number>(other.moeLayers).fill(capacity), experts: other.experts, topK: other.topK });
      device.info!.limits!.maxCacheBytes = 1n << 40n;
      return device;
    };
    const calls = () => registry.proposed.map((proposals) => proposals.map(({ deviceId }) => deviceId).sort());

    beforeAll(async () => {
      const evaluator = await EvaluationProcess.open(second, never);
      other = evaluator.subject;
      await evaluator.close();
    });

    test('each has its surfaces and its rollout, and a device of neither is told so', async () => {
      registry.devices = [device('a', 16), otherDevice('b', other.experts / 2), learnableDevice('c', { modelHash: 'model-c' })];
      const result = await runLearnerJob(both(), never);
      expect(calls()).toEqual([['a'], ['b'], ['c']]);
      expect(result).toMatchObject({ devices: 3, proposed: 2, rolloutIds: ['rollout-1', 'rollout-1'], frozen: { other_model: 1 } });
      const [a, b, c] = registry.proposed.flat();
      expect(a).toMatchObject({ modelHash: subject.modelHash, proposed: true, capacities: layers(16) });
      expect(b).toMatchObject({ modelHash: other.modelHash, proposed: true, capacities: Array(other.moeLayers).fill(other.experts / 2) });
      expect(c!.reason).toBe(`the device runs model model-c, the learner measures ${subject.modelHash.slice(0, 12)}, ${other.modelHash.slice(0, 12)}`);
      expect(result.measuredPoints).toBe(surfaceOf(subject).points.length + surfaceOf(other).points.length);
      expect(surfaceOf(subject).baselineCrossEntropy).not.toBe(surfaceOf(other).baselineCrossEntropy);
      for (const [key, surface] of registry.surfaces) measured.set(key, surface);
      expect(activities.some((activity) => / at capacity \d+ of tinyolmoe-22m-q8_0: \d+%/.test(activity))).toBe(true);
    });

    test('one that cannot be measured fails the run once the other has been learned about', async () => {
      for (const [key, surface] of measured) registry.surfaces.set(key, surface);
      registry.devices = [device('a', 12), otherDevice('b', other.experts / 2)];
      const broken = runLearnerJob(both({ openEvaluator: (of, signal) => (of === subject ? Promise.reject(new Error('it is broken')) : open(of, signal)) }), never);
      await expect(broken).rejects.toThrow('it is broken');
      expect(calls()).toEqual([['b']]);
      expect(registry.proposed[0]![0]).toMatchObject({ proposed: true });
    });

    test('a device that loses too much is held back while the other model is measured', async () => {
      for (const [key, surface] of measured) registry.surfaces.set(key, surface);
      registry.devices = [device('a', 16), otherDevice('b', other.experts / 2)];
      await runLearnerJob(both(), never);
      const { lambda, topJ, capacities } = registry.proposed.flat()[1]!;
      const most = pointAt(surfaceOf(other), { routing: Routing.ROUTING_CACHE_PRIOR, lambda, topJ, capacities })!.massLost;
      const decoded = (tokens: number, massLost: number): Device => ({
        ...otherDevice('b', other.experts / 2), bootId: 'boot-1', sources: [{ field: 'lambda', layer: ValueSource_Layer.LAYER_LEARNER, detail: '' }],
        reported: Reported.fromPartial({ appliedGeneration: 3n, effective: { routing: Routing.ROUTING_CACHE_PRIOR, lambda, topJ, capacities } }),
        telemetry: TelemetryFrame.fromPartial({
          sequence: BigInt(tokens), timeMs: BigInt(tokens * 10), decodeTokens: BigInt(tokens), decodeNs: BigInt(tokens * 1e6),
          layers: capacities.map((capacity, layer) => ({ layer, capacity, resident: capacity, hits: BigInt(tokens * other.topK), massLost, events: BigInt(tokens) })),
        }),
      });
      registry.devices = [device('a', 16), decoded(100, 0)];
      await runLearnerJob(both(), never);
      registry.proposed.length = 0;

      registry.devices.push(device('a-8', 8));
      let now = 100;
      await runLearnerJob(both({ nowMs: () => { now += 20_000; return now; }, pointMeasured: () => { registry.devices[1] = decoded(3000, 3000 * most * 4); } }), never);
      expect(calls()).toEqual([['b'], ['a', 'a-8'], ['b']]);
      expect(registry.proposed[0]![0]!.lambda).toBeLessThan(lambda);
      expect(registry.knowledge.get('b')!.drift!.hold).toMatchObject({ seenLambda: lambda });
    });
  });

  test('measures each routing asked for, keeps what it has of them, and chooses among those alone', async () => {
    registry.devices = [device('half', 16)];
    const run = (...names: (typeof ROUTING_NAMES)[number][]) => runLearnerJob({ ...parts(), routings: names.map((name) => ROUTINGS[name]) }, never);
    const bent = (name: (typeof ROUTING_NAMES)[number]) => only().points.filter(({ routing, lambda }) => lambda > 0 && routing === ROUTINGS[name]);
    const measured = { cache_prior: (await run('cache_prior')).measuredPoints };
    const before = only().points;

    const all = await run(...ROUTING_NAMES);
    expect(only().points.slice(0, before.length)).toEqual(before);
    expect(all.measuredPoints).toBe(only().points.length - before.length);
    expect(all.measuredPoints).toBeLessThan(3 * measured.cache_prior);
    const baseline = pointAt(only(), { ...own, capacities: layers(16) })!;
    for (const name of ROUTING_NAMES) {
      expect(bent(name).length).toBeGreaterThan(0);
      expect(Math.min(...bent(name).map(({ missRate }) => missRate))).toBeLessThan(baseline.missRate * 0.8);
    }
    // Of the strongest ones, `max_rank` takes a resident of any rank, which at a mass of 1 is the same by definition.
    const strongest = (name: (typeof ROUTING_NAMES)[number], topJ: number) => bent(name).find((point) => point.lambda === 1 && point.topJ === topJ)!;
    expect(strongest('cumulative_threshold', 2).missRate).toBe(strongest('max_rank', 2).missRate);
    expect(strongest('pruned', 2).swapRate).toBe(0);
    expect(activities.some((activity) => /measuring max_rank 32 topJ 2 at capacity 16: \d+%/.test(activity))).toBe(true);
    expect((await run(...ROUTING_NAMES)).measuredPoints).toBe(0);

    // Asked for alone it is what goes out, as a device takes it, though λ is on the surface and better.
    await run('cumulative_threshold');
    const proposal = registry.proposed.at(-1)![0]!;
    expect(proposal).toMatchObject({ routing: Routing.ROUTING_CUMULATIVE_THRESHOLD, lambda: 0, maxRank: undefined, proposed: true });
    expect(proposal.reason).toMatch(/^cumulative_threshold 0\.\d+ topJ \d at capacity 16/);
    const setting = settingOfFields(proposal, proposal.capacities, subject)!;
    expect(pointAt(only(), setting)!.crossEntropyLoss).toBeLessThan(Math.log1p(0.01));
    expect(registry.knowledge.get('half')!.choice!.chosen).toMatchObject({ routing: Routing.ROUTING_CUMULATIVE_THRESHOLD, lambda: proposal.massThreshold, measured: true });
    const opposite = await run('cache_prior');
    expect(opposite.measuredPoints).toBe(0);
    expect(registry.proposed.at(-1)![0]).toMatchObject({ routing: Routing.ROUTING_CACHE_PRIOR, massThreshold: undefined });
  });

  test('fails the run, and tells why, when the engine\'s process dies', async () => {
    registry.devices = [device('half', 16)];
    const run = runLearnerJob(parts(async (signal) => {
      const evaluator = await EvaluationProcess.open(SOURCE, signal);
      return { subject: evaluator.subject, close: () => evaluator.close(), evaluate: async (...given) => {
        const evaluation = evaluator.evaluate(...given);
        await evaluator.close();
        return evaluation;
      } };
    }), never);
    await expect(run).rejects.toThrow(/engine's process ended \(SIGKILL\)/);
    expect(registry.proposed).toEqual([]);
  });

  test('sets a stored surface of another model aside, and measures anew', async () => {
    registry.devices = [device('all', 32)];
    const point = SurfacePoint.fromPartial({ lambda: 0, capacities: layers(32), missRate: 0.9, layerMissRates: layers(0.9) });
    registry.surfaces.set(surfaceKey({ modelHash: subject.modelHash, textHash: subject.domains[0]!.textHash }), { ...emptySurface(subject, subject.domains[0]!, 512), points: [point], baselineWindows: [1, 1], modelHash: 'model-b' });
    expect((await runLearnerJob(parts(), never)).measuredPoints).toBe(1);
    expect(only().modelHash).toBe(subject.modelHash);
    expect(pointAt(only(), { ...own, capacities: layers(32) })!.missRate).toBeLessThan(0.1);
    expect(registry.proposed[0]![0]).toMatchObject({ proposed: true, lambda: 0 });
  });
});

describe('opening the evaluation process', () => {
  let folder: string;
  beforeAll(() => { folder = mkdtempSync(join(tmpdir(), 'moefleet-learner-')); });
  afterAll(() => rmSync(folder, { recursive: true }));
  const file = (name: string, content: string | Buffer): string => {
    const path = join(folder, name);
    writeFileSync(path, content);
    return path;
  };

  test.each([
    ['a text that is not there', () => ({ textPaths: ['/nowhere/t.txt'] }), /\/nowhere\/t.txt: cannot be read \(no such file\)/],
    ['a text that is too short', () => ({ textPaths: [file('short.txt', 'a few words')] }), /short.txt: the text has \d+ tokens, 513 are needed/],
    ['a text that is not UTF-8', () => ({ textPaths: [file('latin.txt', Buffer.from([0x66, 0xfc, 0x72]))] }), /latin.txt: not UTF-8/],
    ['a model that is none', () => ({ modelPath: file('none.gguf', 'no model') }), /none.gguf/],
    ['a model that is cut off', () => {
      const path = join(folder, 'cut.gguf');
      copyFileSync(MODEL, path);
      truncateSync(path, 100_000);
      return { modelPath: path };
    }, /cut.gguf/],
  ] as [string, () => Partial<typeof SOURCE>, RegExp][])('refuses %s', async (_, changed, text) => {
    const opening = EvaluationProcess.open({ ...SOURCE, ...changed() }, never);
    await expect(opening).rejects.toThrow(EvaluationInputError);
    await expect(opening).rejects.toThrow(text);
  });
});
