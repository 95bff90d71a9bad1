/**
 * The name every coordinator's certificate carries, and that agents and the command line ask for whatever address they
 * dial. The fleet's authority gives it to coordinators alone, so that load balancers and changing addresses need no
 * certificate of their own.
 */
export const COORDINATOR_NAME = 'coordinator.moefleet.internal';
