/**
 * Each party fails at each step of a staged rollout, which then has to come to its proper end all the same. By default a
 * choice of cases in which every step occurs; all of them with MOEFLEET_FAULTS=all (`npm run faults`).
 */
import { until } from '../../harness/ports';
import type { StagedRollout, StagedRow } from '../../../coordinator/src/registry/staged-rollout';
import { type AgentStep, BAD_LAMBDA } from './agent-journal';
import type { AgentProcess } from './fault-processes';
import { FaultFleet } from './fault-fleet';
import { type FaultName, FAULTS } from './faults';

let fleet: FaultFleet;
beforeAll(async () => { fleet = await FaultFleet.start(['one', 'two', 'three']); });
afterAll(() => fleet?.stop());
afterEach(() => fleet?.heal());

const SOAK_MS = 700;
const PATIENCE_MS = 60_000;

interface At { readonly id: string; readonly lambda: number; readonly before: number }
interface RolloutStep {
  /** the change is a bad one, which its gate takes back */
  readonly bad?: boolean;
  /** where devices are held from the beginning, so that it comes no further */
  readonly hold?: AgentStep;
  /** a device of this stage fails, where a device does */
  readonly stage: number;
  reached(view: { rollout: StagedRollout; rows: StagedRow[] }, victim: AgentProcess, at: At): boolean | Promise<boolean>;
}

const STEPS = {
  'stage started': { stage: 1, hold: 'received', reached: ({ rollout }) => rollout.state === 'running' && rollout.phase === 'applying' },
  'waiting for applied': { stage: 1, hold: 'applying', reached: (_, victim, { lambda }) => victim.reaches('applying', lambda).then(() => true) },
  'measure gate': { stage: 1, hold: 'measuring', reached: (_, victim, { lambda }) => victim.reaches('measuring', lambda).then(() => true) },
  'soak': { stage: 1, reached: ({ rollout, rows }, { id }) => rollout.phase === 'judging' && rows.some((row) => row.deviceId === id && row.measured !== null) },
  'stage passed': { stage: 2, hold: 'received', reached: ({ rollout }) => rollout.stage === 2 },
  'rolling back': { stage: 1, bad: true, reached: async ({ rollout }, victim, { before }) => {
    // Once it has the bad value, it is held where it gets the good one back.
    if (rollout.phase === 'judging') victim.hold('received');
    if (rollout.state === 'rolling_back') await victim.reaches('received', before);
    return rollout.state === 'rolling_back';
  } },
} satisfies Record<string, RolloutStep>;
type StepName = keyof typeof STEPS;

const CHOSEN: [StepName, FaultName][] = [
  ['stage started', 'coordinator killed'], ['waiting for applied', 'agent killed'], ['measure gate', 'coordinator stopped, another takes over'],
  ['soak', 'redis killed'], ['stage passed', 'coordinator killed, another takes over'], ['rolling back', 'coordinator killed'],
];
const ALL = (Object.keys(STEPS) as StepName[]).flatMap((step) => (Object.keys(FAULTS) as FaultName[]).map((fault): [StepName, FaultName] => [step, fault]));

let before = 0;
test.each(process.env['MOEFLEET_FAULTS'] === 'all' ? ALL : CHOSEN)('%s: %s', async (stepName, faultName) => {
  const step: RolloutStep = STEPS[stepName];
  const fault = FAULTS[faultName];
  const lambda = fleet.nextLambda(step.bad ? BAD_LAMBDA : 0);
  if (before === 0) {
    before = fleet.nextLambda();
    fleet.change(before);
    await fleet.converges(before);
  }
  const id = await fleet.startRollout(lambda, { stages: '1,100%', gate: 'perplexityLoss<1%', soakMs: SOAK_MS, deadlineMs: PATIENCE_MS });
  const { rows } = await fleet.rollout(id);
  const victim = fleet.agent(rows.find((row) => row.stage === step.stage)!.deviceId);
  if (step.hold) victim.hold(step.hold);
  await until(`the rollout is at "${stepName}"`, async () => step.reached(await fleet.rollout(id), victim, { id, lambda, before }), PATIENCE_MS, 20);
  await fault.begin(fleet, victim);
  fleet.release();
  await fault.end(fleet, victim);

  const end = step.bad ? 'rolled_back' : 'done';
  const ended = await until(`the rollout is ${end}`, async () => {
    const view = await fleet.rollout(id);
    return view.rollout.state === end ? view : null;
  }, PATIENCE_MS, 50).catch(async (error: Error) => { throw new Error(`${error.message}: ${JSON.stringify(await fleet.rollout(id))}`, { cause: error }); });
  // What the rollout says of its devices is what they have done.
  for (const { deviceId, state, generation } of ended.rows) {
    if (state === 'applied') expect(fleet.agent(deviceId).journal).toContainEqual(expect.objectContaining({ t: 'ran', lambda, generation }));
  }
  if (!step.bad) before = lambda;
  await fleet.converges(before);
  await fleet.checkInvariants();
  await fleet.home();
});
