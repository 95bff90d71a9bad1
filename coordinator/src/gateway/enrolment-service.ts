/** EnrolmentService: certificates for devices, on the listener that they connect to. */
import type { handleUnaryCall, ServerUnaryCall } from '@grpc/grpc-js';
import type { EnrolmentServiceServer } from '@moefleet/proto';
import type { Logger } from '@moefleet/runtime';
import { toGrpcStatus } from '../grpc-status';
import type { Enrolment } from '../identity/enrolment';

export function enrolmentService(enrolment: Enrolment, log: Logger): EnrolmentServiceServer {
  const answer = <Request, Response>(handle: (call: ServerUnaryCall<Request, Response>) => Promise<Response>): handleUnaryCall<Request, Response> => (call, callback) => {
    // What is thrown before the first await is an answer too.
    (async () => handle(call))().then((response) => callback(null, response), (error: unknown) => {
      const failure = toGrpcStatus(error);
      if (failure.unexpected) log.error({ err: error, path: call.getPath() }, 'call failed');
      else log.info({ peer: call.getPeer(), why: failure.details }, 'no certificate given');
      callback(failure, null);
    });
  };
  return {
    enrol: answer(({ request }) => enrolment.enrol(request)),
    renew: answer(async (call) => ({ issued: await enrolment.renew(call.request, enrolment.identify(call.getAuthContext())) })),
    reenrol: answer(async ({ request }) => ({ issued: await enrolment.reenrol(request) })),
  };
}
