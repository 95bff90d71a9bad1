/** What can happen to each party, and how it ends. */
import { setTimeout as sleep } from 'node:timers/promises';
import { until } from '../../harness/ports';
import type { AgentProcess } from './fault-processes';
import type { FaultFleet } from './fault-fleet';

export interface Fault {
  readonly name: string;
  begin(fleet: FaultFleet, victim: AgentProcess): Promise<void>;
  end(fleet: FaultFleet, victim: AgentProcess): Promise<void>;
}

/** Longer than a command to Redis is waited for. */
const OUTLASTS_COMMANDS_MS = 2500;
const PATIENCE_MS = 20_000;

const leaseEnds = (fleet: FaultFleet, { id }: AgentProcess) => until(`the lease of ${id} has ended`, async () => await fleet.leaseOf(id) === null, PATIENCE_MS, 20);
const allAreWith = (fleet: FaultFleet, coordinator: string) => until(`all are with ${coordinator}`, async () =>
  (await Promise.all(fleet.agents.map(({ id }) => fleet.leaseOf(id)))).every((holder) => holder === coordinator), PATIENCE_MS, 20);

export const FAULTS = {
  'agent killed': {
    begin: (_, victim) => victim.kill(),
    end: async (_, victim) => victim.start(),
  },
  /** Its stream stays half open, which the coordinator has to notice by itself. */
  'agent stopped': {
    begin: async (fleet, victim) => {
      victim.signal('SIGSTOP');
      await leaseEnds(fleet, victim);
    },
    end: async (_, victim) => victim.signal('SIGCONT'),
  },
  'agent lost its power': {
    begin: async (fleet, victim) => {
      fleet.toAgents.silent = true;
      await victim.kill();
      await leaseEnds(fleet, victim);
    },
    end: async (fleet, victim) => {
      fleet.toAgents.silent = false;
      victim.start();
    },
  },
  'coordinator killed': {
    begin: (fleet) => fleet.a.kill(),
    end: (fleet) => fleet.a.start(),
  },
  'coordinator killed, another takes over': {
    begin: async (fleet) => {
      fleet.toAgents.target = fleet.b.gateway;
      await fleet.a.kill();
      fleet.release();
      await allAreWith(fleet, 'b');
    },
    end: (fleet) => fleet.a.start(),
  },
  /** It awakes with streams that look alive and a lease that is another's by now: it has to let go of both. */
  'coordinator stopped, another takes over': {
    begin: async (fleet) => {
      fleet.toAgents.target = fleet.b.gateway;
      fleet.toAgents.silent = true;
      fleet.a.signal('SIGSTOP');
      fleet.release();
      await allAreWith(fleet, 'b');
    },
    end: async (fleet) => {
      fleet.a.signal('SIGCONT');
      await until('the one that awoke is fenced', async () => await fleet.a.metric('streams') === 0, PATIENCE_MS, 20);
      fleet.toAgents.silent = false;
      await allAreWith(fleet, 'b');
    },
  },
  'redis killed': {
    begin: async (fleet) => {
      await fleet.redis.kill();
      await sleep(300);
    },
    end: (fleet) => fleet.redis.start(),
  },
  'redis stopped': {
    begin: async (fleet) => fleet.redis.signal('SIGSTOP'),
    end: async (fleet) => {
      await sleep(OUTLASTS_COMMANDS_MS);
      fleet.redis.signal('SIGCONT');
    },
  },
  'link to redis silent': {
    begin: async (fleet) => { fleet.toRedis.blackhole = true; },
    end: async (fleet) => {
      await sleep(OUTLASTS_COMMANDS_MS);
      fleet.toRedis.blackhole = false;
      fleet.toRedis.cut();
    },
  },
  'link to agents cut': {
    begin: async (fleet) => fleet.toAgents.cut(),
    end: async () => {},
  },
  'link to agents silent': {
    begin: async (fleet, victim) => {
      fleet.toAgents.blackhole = true;
      await leaseEnds(fleet, victim);
    },
    end: async (fleet) => {
      fleet.toAgents.blackhole = false;
      fleet.toAgents.cut();
    },
  },
} satisfies Record<string, Omit<Fault, 'name'>>;

export type FaultName = keyof typeof FAULTS;
