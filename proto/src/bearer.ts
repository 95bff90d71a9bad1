/** Sends an operator's token with every call of a client: `authorization: Bearer <token>`. */
import { InterceptingCall, type Interceptor } from '@grpc/grpc-js';

export function bearerInterceptor(token: string): Interceptor {
  return (options, nextCall) => new InterceptingCall(nextCall(options), {
    start(metadata, listener, next) {
      metadata.set('authorization', `Bearer ${token}`);
      next(metadata, listener);
    },
  });
}
