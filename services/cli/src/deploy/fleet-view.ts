/** What a deployment needs of the fleet: a token for a device, and the coordinator's word that the device runs. */
import { setTimeout as sleep } from 'node:timers/promises';
import { status } from '@grpc/grpc-js';
import { type Device, SpecState } from '@moefleet/proto';
import { statusOf } from '../failure';
import type { OperatorConnection } from '../operator-connection';
import { DeployError } from './deploy-error';

const POLL_MS = 200;

export interface FleetView {
  /** whether devices need a token: the coordinator has a certificate authority */
  readonly enrols: boolean;
  /** whether there is a coordinator to ask at all */
  readonly asks: boolean;
  createToken(id: string, ttlMs: number): Promise<string>;
  /** Rejects with DeployError when the coordinator has not seen the device connected, with its spec applied, in time. */
  waitApplied(id: string, patienceMs: number): Promise<void>;
  /** Lets the next installation have the id and refuses the present one; false where the coordinator does not know it. `keepRecord`: it stays listed, with its pins and labels. */
  release(id: string, keepRecord: boolean): Promise<boolean>;
}

export const NO_FLEET: FleetView = {
  enrols: false, asks: false,
  createToken: () => Promise.reject(new Error('there is no coordinator')),
  waitApplied: () => Promise.resolve(),
  release: () => Promise.resolve(false),
};

/** `enrols`: the coordinator serves TLS. Throws Failure where it cannot be reached or refuses the caller. */
export async function fleetView(operator: OperatorConnection, enrols: boolean, signal: AbortSignal): Promise<FleetView> {
  const { identity } = operator;
  // Better now than after the copies.
  await operator.unary(identity.listEnrolmentTokens.bind(identity), {});
  return {
    enrols, asks: true,
    async createToken(id, ttlMs) {
      return (await operator.unary(identity.createEnrolmentToken.bind(identity), { labels: {}, uses: 1, ttlMs: BigInt(ttlMs), why: `deploy ${id}` })).secret;
    },
    async waitApplied(id, patienceMs) {
      const deadline = Date.now() + patienceMs;
      for (let why = ''; ; await sleep(POLL_MS, undefined, { signal })) {
        try {
          const device = await operator.getDevice(id);
          why = whyNotApplied(device);
        } catch (error) {
          if (statusOf(error) !== status.NOT_FOUND) throw error;
          why = 'it has not connected to the coordinator';
        }
        if (why === '') return;
        if (Date.now() > deadline) throw new DeployError(why, 'see the host\'s log');
      }
    },
    async release(id, keepRecord) {
      try {
        const request = { deviceId: id, why: 'undeployed' };
        if (keepRecord) await operator.unary(identity.releaseDevice.bind(identity), request);
        else await operator.unary(identity.removeDevice.bind(identity), request);
        return true;
      } catch (error) {
        if (statusOf(error) === status.NOT_FOUND) return false;
        throw error;
      }
    },
  };
}

/** Empty: connected, its model is loaded, and what is desired of it, if anything, is in force. */
export function whyNotApplied({ online, drift, desired, reported, held }: Device): string {
  if (!online) return 'it has not connected to the coordinator';
  if (held) return 'the coordinator holds it: its registry was restored (moefleet fleet accept-restore)';
  if (reported?.state === SpecState.SPEC_STATE_FAILED) return `it cannot apply its spec: ${reported.reason}`;
  if (desired && (drift || reported?.state !== SpecState.SPEC_STATE_APPLIED)) return 'it has not applied its spec';
  return '';
}
