import { copyFileSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Reported, ValueSource_Layer } from '@moefleet/proto';
import { createLogger } from '@moefleet/runtime';
import { until } from '../../../test/harness/ports';
import { CoordinatorLink } from './coordinator-link';
import { EvaluationProcess } from './evaluation-process';
import { EvaluationInputError, type EvaluationSubject, type Evaluator } from './evaluator';
import { type LearnerJobParts, runLearnerJob, wantedCapacities } from './learner-job';
import { baselineOf, pointsAt } from './quality-surface';
import { learnableDevice } from './testing/learnable-device';
import { ScriptedRegistry } from './testing/scripted-registry';

const FIXTURES = join(__dirname, '..', '..', '..', 'test', 'fixtures');
const MODEL = join(FIXTURES, 'tinymoe-17m-q8_0.gguf');
const SOURCE = { modelPath: MODEL, textPath: join(FIXTURES, 'wikitext.txt'), tokens: 512, context: 256, threads: 1 };
const log = createLogger('test', 'silent');
const never = new AbortController().signal;

test('wants each capacity once, those of most devices first, and none that the model cannot use', () => {
  const subject: EvaluationSubject = { modelHash: 'model-a', textHash: 't', moeLayers: 2, experts: 32, topK: 4 };
  const device = (id: string, maxCapacities: number[], modelHash = 'model-a') => learnableDevice(id, { maxCapacities, modelHash });
  expect(wantedCapacities([
    device('a', [8, 8]), device('b', [16, 16]), device('c', [16, 16]), device('d', [3, 8]), device('e', [33, 33]), device('f', [8]), device('g', []),
    device('h', [12, 12], 'model-b'),
  ], subject)).toEqual([[16, 16], [8, 8]]);
  const pinned = {
    ...device('i', [16, 16]),
    reported: Reported.fromPartial({ effective: { capacities: [12, 12] } }),
    sources: [{ field: 'capacities', layer: ValueSource_Layer.LAYER_DEVICE_PIN, detail: '' }],
  };
  expect(wantedCapacities([pinned], subject)).toEqual([[12, 12]]);
});

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
      registry: link, identify: async () => subject, log, tokens: SOURCE.tokens, budgetNats: Math.log1p(0.01), nowMs: () => 99,
      openEvaluator: (signal) => { opened += 1; return open(signal); },
      report: (activity) => { activities.push(activity); },
    };
  }
  const layers = (capacity: number) => Array<number>(6).fill(capacity);
  const device = (id: string, capacity: number) => learnableDevice(id, { modelHash: subject.modelHash, maxCapacities: layers(capacity) });

  test('measures a surface once, proposes from it, and measures no more than what a new device adds', async () => {
    registry.devices = [device('half', 16), learnableDevice('other', { modelHash: 'model-b', maxCapacities: layers(16) })];
    const first = await runLearnerJob(parts(), never);
    expect(first).toMatchObject({ devices: 2, proposed: 1, rolloutId: 'rollout-1' });
    expect(registry.puts).toBe(first.measuredPoints);

    const points = pointsAt(registry.surface!, layers(16));
    const baseline = baselineOf(points)!;
    expect(baseline.missRate).toBeGreaterThan(0.1);
    expect(registry.surface!.baselineCrossEntropy).toBeGreaterThan(3);
    for (const lambda of [0.05, 0.1]) expect(points.find((point) => point.lambda === lambda && point.topJ === 1)!.missRate).toBeLessThan(baseline.missRate);

    const [half, other] = registry.proposed[0]!;
    expect(half).toMatchObject({ deviceId: 'half', proposed: true, capacities: layers(16), textHash: subject.textHash, timeMs: 99n });
    const taken = half!.lambda === 0 ? baseline : points.find((point) => point.lambda === half!.lambda && point.topJ === half!.topJ)!;
    expect(half).toMatchObject({ predictedMissRate: taken.missRate, predictedCrossEntropyLoss: taken.crossEntropyLoss, baselineMissRate: baseline.missRate });
    expect(other).toMatchObject({ deviceId: 'other', proposed: false });
    expect(activities.some((activity) => /measuring λ 0.05 topJ 1 at capacity 16: \d+%/.test(activity))).toBe(true);
    expect(activities.at(-1)).toBe('');

    const again = await runLearnerJob(parts(), never);
    expect(again.measuredPoints).toBe(0);
    expect(opened).toBe(1);
    expect(registry.proposed[1]).toEqual(registry.proposed[0]);

    registry.devices.push(device('quarter', 8));
    expect((await runLearnerJob(parts(), never)).proposed).toBe(2);
    expect(pointsAt(registry.surface!, layers(16))).toEqual(points);
    const quarter = baselineOf(pointsAt(registry.surface!, layers(8)))!;
    expect(quarter.missRate).toBeGreaterThan(baseline.missRate);
  });

  test('keeps what is measured when it is stopped, and goes on from there to the same surface', async () => {
    registry.devices = [device('half', 16)];
    const stop = new AbortController();
    const running = runLearnerJob(parts(), stop.signal);
    await until('some points are stored', () => registry.puts >= 4);
    stop.abort(new Error('stopping'));
    await expect(running).rejects.toThrow('stopping');
    expect(registry.proposed).toEqual([]);
    const kept = registry.surface!.points;

    const resumed = await runLearnerJob(parts(), never);
    expect(registry.surface!.points.slice(0, kept.length)).toEqual(kept);
    const interrupted = registry.surface!.points;

    registry.surface = null;
    const whole = await runLearnerJob(parts(), never);
    expect(resumed.measuredPoints + kept.length).toBe(whole.measuredPoints);
    interrupted.forEach((point, i) => {
      expect(point).toMatchObject({ lambda: registry.surface!.points[i]!.lambda, topJ: registry.surface!.points[i]!.topJ });
      expect(point.crossEntropyLoss).toBeCloseTo(registry.surface!.points[i]!.crossEntropyLoss, 9);
    });
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

  test('measures anew where the stored surface is of another part of the text', async () => {
    registry.devices = [device('all', 32)];
    registry.surface = { modelHash: subject.modelHash, textHash: subject.textHash, tokens: 1024, context: 256, baselineCrossEntropy: 9, points: [], measuredMs: 0n };
    expect((await runLearnerJob(parts(), never)).measuredPoints).toBe(1);
    expect(registry.surface.tokens).toBe(512);
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
    ['a text that is not there', () => ({ textPath: '/nowhere/t.txt' }), /\/nowhere\/t.txt: cannot be read \(no such file\)/],
    ['a text that is too short', () => ({ textPath: file('short.txt', 'a few words') }), /short.txt: the text has \d+ tokens, 513 are needed/],
    ['a text that is not UTF-8', () => ({ textPath: file('latin.txt', Buffer.from([0x66, 0xfc, 0x72])) }), /latin.txt: not UTF-8/],
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
