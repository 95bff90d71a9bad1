/** Counts the calls a gRPC server has ended, by service, method and status. */
import { type ServerInterceptor, ServerInterceptingCall, status } from '@grpc/grpc-js';

export type CallObserver = (service: string, method: string, code: string) => void;

export function countCalls(observe: CallObserver): ServerInterceptor {
  return ({ path }, call) => new ServerInterceptingCall(call, {
    sendStatus: (answer, next) => {
      // Only methods that are served here get this far, so that their number is bounded.
      const [, service = '', method = ''] = path.split('/');
      observe(service, method, status[answer.code] ?? String(answer.code));
      next(answer);
    },
  });
}
