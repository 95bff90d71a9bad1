/**
 * The one place that decides who may make a call of the operator server: an interceptor in front of every method. Reads
 * `authorization: Bearer <token>`, looks the token up (so a revoked one is refused at the next call), holds its role
 * against the table, and tells the handler who calls. A token that is sent is checked even where none is asked for.
 */
import { type Metadata, type ServerInterceptor, ServerInterceptingCall, ServerListenerBuilder } from '@grpc/grpc-js';
import type { Logger } from '@moefleet/runtime';
import { PermissionDeniedError, UnauthenticatedError } from '../errors';
import { toGrpcStatus } from '../grpc-status';
import type { OperatorStore } from '../registry/operator-store';
import { type Caller, LOCAL_CALLER, setCaller } from './caller';
import { mayCall, roleNeeded } from './role-table';

const BEARER = /^Bearer ([^\s]{1,256})$/i;

export function operatorAuth(operators: OperatorStore, required: boolean, log: Logger): ServerInterceptor {
  return ({ path }, call) => {
    const listener = new ServerListenerBuilder().withOnReceiveMetadata((metadata, next) => {
      identify(operators, required, path, metadata).then((caller) => {
        setCaller(metadata, caller);
        next(metadata);
      }, (error: unknown) => {
        const { unexpected, ...failure } = toGrpcStatus(error);
        if (unexpected) log.error({ err: error, path }, 'caller cannot be identified');
        else log.info({ path, peer: call.getPeer(), reason: failure.details }, 'call refused');
        call.sendStatus(failure);
      });
    }).build();
    return new ServerInterceptingCall(call, { start: (next) => next(listener), sendMetadata: (m, next) => next(m), sendMessage: (m, next) => next(m), sendStatus: (s, next) => next(s) });
  };
}

async function identify(operators: OperatorStore, required: boolean, path: string, metadata: Metadata): Promise<Caller> {
  const need = roleNeeded(path);
  const sent = metadata.get('authorization').map(String);
  if (need === 'public' || (!required && sent.length === 0)) return LOCAL_CALLER;
  const method = path.slice(path.lastIndexOf('/') + 1);
  if (sent.length === 0) throw new UnauthenticatedError(`${method} needs a token of role ${need}; give one with --token-file FILE or MOEFLEET_TOKEN`);
  const token = sent.length === 1 ? BEARER.exec(sent[0]!)?.[1] : undefined;
  if (token === undefined) throw new UnauthenticatedError(`${method} needs a token of role ${need}, sent as "authorization: Bearer TOKEN"`);
  const verdict = await operators.verify(token);
  if (verdict.t === 'unknown') throw new UnauthenticatedError(`the token is unknown or revoked; ${method} needs one of role ${need}, which an admin makes with: moefleet operator create`);
  const { operator } = verdict;
  if (verdict.t === 'expired') throw new UnauthenticatedError(`the token of "${operator.name}" expired at ${new Date(operator.expiresMs).toISOString()}; ${method} needs one of role ${need}`);
  if (!mayCall(operator.role, need)) throw new PermissionDeniedError(`${method} needs the role ${need}; "${operator.name}" is ${operator.role}`);
  return { name: operator.name };
}
