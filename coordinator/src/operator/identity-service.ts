/** IdentityService: enrolment tokens, and who may be in the fleet. Every change is in the audit log before it is made. */
import type { IdentityServiceServer } from '@moefleet/proto';
import type { Logger } from '@moefleet/runtime';
import { InvalidRequestError, NotAllowedNowError, NotFoundError } from '../errors';
import type { Enrolment } from '../identity/enrolment';
import { checkId, checkLabels } from '../names';
import type { IdentityRecord } from '../registry/identity-record';
import type { Registry } from '../registry/registry';
import { unary } from './call-handler';
import type { Caller } from './caller';
import { viewIdentity, viewToken } from './identity-view';
import { checkWhy } from './request-check';

const DEFAULT_TTL_MS = 3_600_000;
const MOST_TTL_MS = 365 * 24 * 3_600_000;
const MOST_USES = 100_000;

export interface IdentityDeps {
  registry: Registry;
  /** null: a coordinator without TLS */
  enrolment: Enrolment | null;
  now: () => number;
  log: Logger;
}

type ChangeRequest = { deviceId: string; why: string };

export function identityService({ registry, enrolment, now, log }: IdentityDeps): IdentityServiceServer {
  const { identities, events } = registry;
  const identityOf = async (deviceId: string): Promise<IdentityRecord> => await identities.read(deviceId) ?? { ...UNKNOWN, deviceId };
  /** Tells the audit log, changes, wakes whoever has the stream. */
  const change = (what: string, make: (deviceId: string, why: string) => Promise<void>, allow: (identity: IdentityRecord) => void | Promise<void> = () => {}) =>
    async (request: ChangeRequest, caller: Caller) => {
      const deviceId = checkId('device_id', request.deviceId);
      const why = checkWhy(request.why);
      const before = await identityOf(deviceId);
      await allow(before);
      const entry = { who: caller.name, what: `${what} device ${deviceId}`, why, subject: { t: 'devices', ids: [deviceId] } as const, before: marksOf(before) };
      await registry.audit.around(entry, () => make(deviceId, why));
      events.emit({ kind: 'identity', deviceId });
      events.emit({ kind: 'device', deviceId });
      return { identity: viewIdentity(await identityOf(deviceId)) };
    };
  return {
    createEnrolmentToken: unary(log, async ({ labels, uses, ttlMs, why }, caller) => {
      if (!enrolment) throw new NotAllowedNowError('this coordinator serves plaintext, where nobody enrols; make a fleet with `moefleet fleet init` and start it with --tls-dir');
      const checked = { labels: checkLabels('labels', labels), uses: uses || 1, ttlMs: ttlMs === 0n ? DEFAULT_TTL_MS : Number(ttlMs), why: checkWhy(why) };
      if (checked.uses > MOST_USES) throw new InvalidRequestError('uses', uses, `a number from 1 to ${MOST_USES}`);
      if (checked.ttlMs > MOST_TTL_MS) throw new InvalidRequestError('ttl_ms', ttlMs, `a time of up to ${MOST_TTL_MS} ms`);
      const entry = { who: caller.name, what: 'create an enrolment token', why: checked.why, after: { labels: checked.labels, uses: checked.uses, ttlMs: checked.ttlMs } };
      const { secret, token } = await registry.audit.around(entry, () => enrolment.createToken(checked.labels, checked.uses, checked.ttlMs, checked.why));
      return { secret, token: viewToken(token) };
    }),
    listEnrolmentTokens: unary(log, async () => ({ tokens: (await identities.tokens()).map(viewToken) })),
    revokeEnrolmentToken: unary(log, async ({ id, why }, caller) => {
      const token = await identities.token(checkId('id', id));
      if (!token) throw new NotFoundError(`enrolment token ${id} is not known; list them with: moefleet token list`);
      const entry = { who: caller.name, what: `revoke enrolment token ${id}`, why: checkWhy(why), before: { uses: token.uses, used: token.used, expiresMs: token.expiresMs } };
      if (!token.revokedMs) await registry.audit.around(entry, () => identities.revokeToken(id, now(), why));
      events.emit({ kind: 'token', deviceId: id });
      return { token: viewToken((await identities.token(id)) ?? token) };
    }),
    revokeDevice: unary(log, change('revoke', (deviceId, why) => identities.revoke(deviceId, now(), why))),
    unrevokeDevice: unary(log, change('unrevoke', (deviceId) => identities.unrevoke(deviceId, now()))),
    releaseDevice: unary(log, change('release the id of', (deviceId) => identities.release(deviceId, now()), ({ deviceId, keyHash }) => {
      if (!keyHash) throw new NotFoundError(`device ${deviceId} has not enrolled, so its id is free`);
    })),
    removeDevice: unary(log, change('remove', async (deviceId) => {
      if ((await identityOf(deviceId)).keyHash) await identities.release(deviceId, now());
      await registry.devices.remove(deviceId);
    }, async ({ deviceId, keyHash, releasedMs }) => {
      if (!(keyHash && !releasedMs) && !await registry.devices.knows(deviceId)) throw new NotFoundError(`device ${deviceId} is not known; see the list of devices`);
    })),
    clearClone: unary(log, change('clear the clone mark of', (deviceId) => identities.clearClone(deviceId))),
    listDeviceIdentities: unary(log, async ({ deviceId }) => {
      const ids = deviceId ? [checkId('device_id', deviceId)] : await registry.devices.ids();
      return { identities: (await identities.readAll(ids)).map(viewIdentity) };
    }),
  };
}

const UNKNOWN: IdentityRecord = {
  deviceId: '', installId: '', keyHash: '', enrolledMs: 0, notAfterMs: 0, tokenId: '', revokedMs: 0, revokedWhy: '', unrevokedMs: 0, releasedMs: 0, clonedMs: 0, clones: [],
};

function marksOf({ installId, revokedMs, revokedWhy, releasedMs, clonedMs }: IdentityRecord) {
  return { installId, revokedMs, revokedWhy, releasedMs, clonedMs };
}
