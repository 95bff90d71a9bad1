/**
 * Each party fails at each step of an apply. By default a choice of cases in which every step and every party occurs;
 * all of them with MOEFLEET_FAULTS=all (`npm run faults`).
 */
import { until } from '../../harness/ports';
import type { AgentProcess } from './fault-processes';
import { FaultFleet } from './fault-fleet';
import { type FaultName, FAULTS } from './faults';

let fleet: FaultFleet;
beforeAll(async () => { fleet = await FaultFleet.start(['a-device', 'bystander']); });
afterAll(() => fleet?.stop());
afterEach(() => fleet?.heal());

/** Begins a change and resolves when the device is at that step of it. */
const STEPS = {
  'pushed': async (lambda, { id }) => {
    fleet.toAgents.held = true;
    fleet.change(lambda);
    await until('it is on its way', async () => {
      const desired = await fleet.registry.devices.readDesired(id);
      return desired.t === 'set' && desired.decoded.lambda === lambda;
    }, 10_000, 5);
  },
  'received': (lambda, victim) => heldAt('received', lambda, victim),
  'being applied': (lambda, victim) => heldAt('applying', lambda, victim),
  'persisted': (lambda, victim) => heldAt('persisted', lambda, victim),
  'reported': async (lambda, victim) => {
    await heldAt('persisted', lambda, victim);
    fleet.toAgents.held = true;
    victim.release('persisted');
    await victim.reaches('reported', lambda);
  },
  'acknowledged': async (lambda, { id }) => {
    fleet.change(lambda);
    await until('it is acknowledged', async () => {
      const device = await fleet.registry.devices.read(id);
      return device?.reported?.effective?.lambda === lambda;
    }, 10_000, 5);
  },
} satisfies Record<string, (lambda: number, victim: AgentProcess) => Promise<void>>;
type StepName = keyof typeof STEPS;

async function heldAt(step: 'received' | 'applying' | 'persisted', lambda: number, victim: AgentProcess): Promise<void> {
  victim.hold(step);
  fleet.change(lambda);
  await victim.reaches(step, lambda);
}

const CHOSEN: [StepName, FaultName][] = [
  ['pushed', 'coordinator stopped, another takes over'], ['received', 'redis killed'], ['being applied', 'coordinator killed'], ['being applied', 'agent lost its power'],
  ['persisted', 'agent killed'], ['reported', 'link to agents silent'], ['reported', 'redis stopped'], ['acknowledged', 'coordinator killed, another takes over'],
];
const ALL = (Object.keys(STEPS) as StepName[]).flatMap((step) => (Object.keys(FAULTS) as FaultName[]).map((fault): [StepName, FaultName] => [step, fault]));

test.each(process.env['MOEFLEET_FAULTS'] === 'all' ? ALL : CHOSEN)('%s: %s', async (step, name) => {
  const fault = FAULTS[name];
  const victim = fleet.agent('a-device');
  const lambda = fleet.nextLambda();
  await STEPS[step](lambda, victim);
  await fault.begin(fleet, victim);
  fleet.release();
  await fault.end(fleet, victim);
  await fleet.converges(lambda);
  await fleet.checkInvariants();
  await fleet.home();
});
