/** Who may do what: operators and their tokens. Who did what: the audit log. */
import { setTimeout as sleep } from 'node:timers/promises';
import { type AccessServiceServer, type AuditEntry as EntryMessage, type Operator, type ReadAuditRequest, Role } from '@moefleet/proto';
import { type Logger, parseSelector, selectorMatches } from '@moefleet/runtime';
import { InvalidRequestError, NameTakenError, NotFoundError } from '../errors';
import { checkId } from '../names';
import type { AuditEntry, AuditFilter, AuditSubject } from '../registry/audit-store';
import { newToken, type OperatorRecord, type OperatorRole } from '../registry/operator-store';
import type { Registry } from '../registry/registry';
import { orderedStream, unary } from './call-handler';
import { within } from './value-check';

const DEFAULT_LIMIT = 100;
const MOST_LIMIT = 10_000;
const MOST_WHY = 500;
const MOST_TTL_MS = 315_360_000_000n;
/** Between two looks of one who follows: soon enough for people, one range read of Redis. */
const LOOK_EVERY_MS = 500;

export interface AccessDeps {
  registry: Registry;
  log: Logger;
}

export function accessService({ registry, log }: AccessDeps): AccessServiceServer {
  return {
    createOperator: unary(log, async ({ name, role, ttlMs, why }, caller) => {
      checkId('name', name);
      const checked = checkRole(role);
      if (ttlMs > MOST_TTL_MS) throw new InvalidRequestError('ttl_ms', ttlMs, `at most ${MOST_TTL_MS} (ten years); 0: until revoked`);
      const token = newToken();
      const entry = { who: caller.name, what: `operator ${name} created`, why: checkWhy(why), after: { name, role: checked, ttlMs: Number(ttlMs) } };
      const operator = await registry.audit.around(entry, async () => {
        const created = await registry.operators.create(name, checked, token, Number(ttlMs), caller.name);
        if (!created) throw new NameTakenError(`operator ${name} has a token in force; revoke it first, or take another name`);
        return created;
      });
      return { operator: viewOperator(operator), token };
    }),
    listOperators: unary(log, async () => ({ operators: (await registry.operators.list()).map(viewOperator) })),
    revokeOperator: unary(log, async ({ name, why }, caller) => {
      const known = await registry.operators.get(checkId('name', name));
      if (!known || known.revokedMs > 0) throw new NotFoundError(`operator ${name} has no token in force; see: moefleet operator list`);
      const entry = { who: caller.name, what: `operator ${name} revoked`, why: checkWhy(why), before: { name, role: known.role } };
      const revoked = await registry.audit.around(entry, () => registry.operators.revoke(name));
      return { operator: viewOperator(revoked ?? known) };
    }),
    readAudit: orderedStream(log, async (request, send, signal) => {
      const filter = await auditFilter(registry, request);
      const limit = request.limit === 0 ? DEFAULT_LIMIT : within('limit', request.limit, 1, MOST_LIMIT);
      const sinceMs = request.sinceMs === 0n ? 0 : Math.max(1, Date.now() - Number(request.sinceMs));
      let { entries, last } = await registry.audit.latest(sinceMs, limit, filter);
      for (;;) {
        for (const entry of entries) await send({ entry: viewEntry(entry) });
        if (!request.follow) return;
        await sleep(LOOK_EVERY_MS, undefined, { signal });
        ({ entries, last } = await registry.audit.after(last, filter));
      }
    }),
  };
}

const ROLES: Partial<Record<Role, OperatorRole>> = {
  [Role.ROLE_VIEWER]: 'viewer', [Role.ROLE_OPERATOR]: 'operator', [Role.ROLE_ADMIN]: 'admin', [Role.ROLE_LEARNER]: 'learner',
};

function checkRole(role: Role): OperatorRole {
  const found = ROLES[role];
  if (!found) throw new InvalidRequestError('role', role, 'a role of this coordinator: VIEWER, OPERATOR, ADMIN or LEARNER');
  return found;
}

function checkWhy(why: string): string {
  if (why.length > MOST_WHY) throw new InvalidRequestError('why', `${why.length} characters`, `at most ${MOST_WHY}`);
  return why;
}

/** Without its hash. */
function viewOperator({ name, role, createdMs, expiresMs, revokedMs, createdBy }: OperatorRecord): Operator {
  const shown = Object.entries(ROLES).find(([, one]) => one === role)![0];
  return { name, role: Number(shown), createdMs: BigInt(createdMs), expiresMs: BigInt(expiresMs), revokedMs: BigInt(revokedMs), createdBy };
}

async function auditFilter(registry: Registry, { deviceId, who }: ReadAuditRequest): Promise<AuditFilter> {
  const byWho: AuditFilter = (entry) => who === '' || entry.who === who;
  if (deviceId === '') return byWho;
  const device = await registry.devices.read(checkId('device_id', deviceId));
  const labels = device?.labels ?? {};
  return (entry) => byWho(entry) && concerns(entry.subject, deviceId, labels);
}

function concerns(subject: AuditSubject, deviceId: string, labels: Readonly<Record<string, string>>): boolean {
  switch (subject.t) {
    case 'all': return true;
    case 'none': return false;
    case 'devices': return subject.ids.includes(deviceId);
    case 'selector':
      try {
        return selectorMatches(parseSelector(subject.selector), labels);
      } catch {
        // not written by us
        return false;
      }
  }
}

function viewEntry({ subject, timeMs, ...entry }: AuditEntry): EntryMessage {
  return {
    ...entry, timeMs: BigInt(timeMs), deviceIds: subject.t === 'devices' ? [...subject.ids] : [],
    selector: subject.t === 'selector' ? subject.selector : '', allDevices: subject.t === 'all',
  };
}
