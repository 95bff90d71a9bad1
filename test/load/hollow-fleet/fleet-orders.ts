/** What the process that runs a load says to those that hold its agents, and what they answer. */
import type { FleetFigures } from './fleet-counts';

export interface Address { host: string; port: number }

export interface FleetPlan {
  /** agents `hollow-<first>` up to `hollow-<first + count - 1>` */
  first: number;
  count: number;
  /** new connections per second while all are brought up */
  perSecond: number;
  /** gateways; each attempt takes one by chance, as behind a balancer */
  gateways: Address[];
  recordingPath: string;
  /** the fleet's folder, for TLS with a certificate per agent; null: plaintext */
  tlsFolder: string | null;
  /** so many of them can vanish without a word later on */
  vanishing: number;
}

export type Order =
  | { t: 'start'; plan: FleetPlan }
  | { t: 'figures' }
  /** From now on note when each agent has applied a spec with this λ. */
  | { t: 'expect'; lambda: number }
  /** When, in milliseconds since 1970, of each agent that has. */
  | { t: 'arrivals' }
  /** Which of these devices have a stream now, and have had it for so long. */
  | { t: 'connected'; ids: string[]; forMs: number }
  /** That many agents per second lose their process and come back. */
  | { t: 'churn'; perSecond: number }
  /** That many read nothing any more. */
  | { t: 'stall'; agents: number }
  /** Those that can, vanish: their connections stay open and mute, and they come back on new ones. */
  | { t: 'vanish' }
  /** Generation that each agent runs, as digits, by device id. */
  | { t: 'generations' }
  /** Sends no frames for a while, or sends them again. */
  | { t: 'quiet'; on: boolean }
  /** Each sends one more frame and then none; the tokens that all frames have told of, in sum. */
  | { t: 'hush' }
  | { t: 'stop' };

export interface Answers {
  start: null;
  figures: FleetFigures;
  expect: null;
  arrivals: number[];
  connected: string[];
  churn: null;
  stall: number;
  vanish: number;
  generations: Record<string, string>;
  quiet: null;
  hush: number;
  stop: null;
}

export interface OrderMessage { id: number; order: Order }
export type AnswerMessage = { id: number; answer: unknown } | { id: number; failed: string };
